"""The database goes away, hangs and comes back: calls end in time, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from support.plans import assemble
from support.postgres import PostgresServer

from factory_server.core.errors import Unavailable
from factory_server.store import Changed, PostgresStore
from hyperfactory.v1 import events_pb2

SOCKET = ".s.PGSQL.5432"
RECOVERY_MAX_S = 15.0
CALL_MAX_S = 0.5


class Way:
    """A way to the server that can turn into a black hole."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self._target, self._own = socket, folder / SOCKET
        self.open = asyncio.Event()
        self.open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self._own)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._target)
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, inner_writer))
                group.create_task(self._pump(inner_reader, writer))
        for each in (writer, inner_writer):
            each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def way(postgres_url: str) -> AsyncIterator[tuple[Way, str]]:
    """A way to the test's database, and the address through it."""
    parts = urlsplit(postgres_url)
    folder = Path(tempfile.mkdtemp(prefix="hfway"))
    made = Way(Path(parse_qs(parts.query)["host"][0]) / SOCKET, folder)
    await made.start()
    yield made, parts._replace(query=f"host={quote(str(folder), safe='')}").geturl()
    await made.stop()
    shutil.rmtree(folder)


async def until_answers(store: PostgresStore) -> None:
    """Wait until the database answers again."""
    async with asyncio.timeout(RECOVERY_MAX_S):
        while True:
            with contextlib.suppress(Unavailable):
                await store.now()
                return


async def test_a_black_hole_ends_at_the_deadline_and_heals(way: tuple[Way, str]) -> None:
    path, url = way
    store = PostgresStore(url, call_max_s=CALL_MAX_S)
    await store.open()
    crew = await assemble(store)
    path.open.clear()
    began = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(_refused(store, crew.id)) for _ in range(20)]
    assert asyncio.get_running_loop().time() - began < CALL_MAX_S + 1.0
    assert all(call.result() for call in calls)
    path.open.set()
    await until_answers(store)
    assert (await store.get_crew(crew.id)).id == crew.id
    await store.close()


async def _refused(store: PostgresStore, crew: str) -> bool:
    try:
        await store.append(crew, [events_pb2.Event()])
    except Unavailable:
        return True
    return False


async def test_idle_connections_of_before_a_restart_cost_no_error(
    store: PostgresStore, postgres_server: PostgresServer
) -> None:
    crew = await assemble(store)
    async with asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(store.append(crew.id, [events_pb2.Event()]))
    head = (await store.event_bounds(crew.id))[1]
    await asyncio.to_thread(postgres_server.restart)
    assert await store.append(crew.id, [events_pb2.Event()]) == head + 1


async def test_a_restart_in_the_middle_loses_nothing_acknowledged(
    store: PostgresStore, postgres_server: PostgresServer
) -> None:
    crew = await assemble(store)
    acknowledged: set[str] = set()
    unknown: set[str] = set()
    going = True
    again = asyncio.Event()
    enough = 2**31

    async def write(writer: int) -> None:
        number = 0
        while going:
            number += 1
            name = f"{writer}/{number}"
            try:
                await store.append(crew.id, [events_pb2.Event(actor=name)])
                acknowledged.add(name)
                if len(acknowledged) >= enough:
                    again.set()
            except Unavailable:
                unknown.add(name)
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for writer in range(4):
            group.create_task(write(writer))
        await asyncio.to_thread(postgres_server.restart)
        await until_answers(store)
        enough = len(acknowledged) + 8
        async with asyncio.timeout(RECOVERY_MAX_S):
            await again.wait()
        going = False
    kept = [event.decode() for event in await store.read_events(crew.id, 0, 1_000_000)]
    assert [event.sequence for event in kept] == list(range(1, len(kept) + 1))
    actors = [event.actor for event in kept[crew.last_sequence :]]
    assert len(actors) == len(set(actors))
    assert acknowledged <= set(actors) <= acknowledged | unknown


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    store = PostgresStore("postgresql://factory@/none?host=/nonexistent")
    with pytest.raises(Unavailable):
        await store.open()
    await store.close()


async def test_the_hook_tells_what_was_committed_and_nothing_else(store: PostgresStore) -> None:
    told: list[Changed] = []
    store.on_commit = told.append
    crew = await assemble(store)
    assert told == [Changed({crew.id: crew.last_sequence}, agents=True)]
    await store.append(crew.id, [events_pb2.Event()])
    assert told[1:] == [Changed({crew.id: crew.last_sequence + 1}, agents=False, log_only=True)]
    agent = crew.agents[0]
    assert agent.instance is not None
    await store.release_instance(agent.instance.id)
    assert told[2:] == [Changed({}, agents=True)]
    await store.get_crew(crew.id)
    await store.now()
    await store.secret("x")
    with contextlib.suppress(Exception):
        await store.release(agent.id, 1, None, "a", holder="x")
    assert len(told) == 3
