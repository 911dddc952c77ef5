"""kill -9 of each part while a crew works: the crew is READY again without help, and no event is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from running import Client, Running, connected, request_id, running_stack, start_again

from factory_cli import leaks
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import profile_service_pb2 as pp
from hyperfactory.v1 import types_pb2

pytestmark = pytest.mark.timeout(300)

HEALED_WITHIN_S = 40.0
ATTEMPT_S = 5.0


@pytest.fixture(scope="module")
def fragile() -> Iterator[Running]:
    """A stack of this file's own: its parts are killed."""
    with running_stack("hfk") as stack:
        yield stack


def pids_of(home: Path, *words: str) -> list[int]:
    """Processes whose command line names the home and all the words."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(home) in line and all(word in line for word in words):
            found.append(int(process.name))
    return found


def with_descendants(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in with_descendants(int(child)))]


PARTS = {
    "watchdog": ("-m watchdog ",),
    "gateway": ("-m gateway ",),
    "traefik": ("traefik", "--configfile"),
    "factory": ("-m factory_server ",),
    "postgres": ("bin/postgres -D",),
    "valkey": ("valkey-server",),
}


async def healed(running: Running, crew: str) -> dict[str, tuple[str, int]]:
    """Agents' (id, generation) by name, once the crew is READY and every agent answers a broadcast."""
    last: BaseException | None = None
    async with asyncio.timeout(HEALED_WITHIN_S):
        while True:
            try:
                async with connected(running) as client:
                    found = await _answers(client, crew)
                    if found is not None:
                        return found
            except grpc.aio.AioRpcError as error:
                last = error
            except TimeoutError:
                raise AssertionError(f"not healed within {HEALED_WITHIN_S} s: {last}") from last
            await asyncio.sleep(0.05)


async def _answers(client: Client, crew: str) -> dict[str, tuple[str, int]] | None:
    request = cp.GetCrewRequest(crew=crew)
    now = (await client.crews.GetCrew(request, timeout=ATTEMPT_S, metadata=client.metadata)).crew
    if now.state != types_pb2.CREW_STATE_READY:
        return None
    ping = cp.BroadcastRequest(request_id=request_id(), crew=crew, signal="PING")
    ping.ttl.FromSeconds(4)
    stream = client.crews.Broadcast(ping, timeout=ATTEMPT_S, metadata=client.metadata)
    receipts = [receipt async for response in stream for receipt in response.receipts]
    acked = [r for r in receipts if r.stage == 2]
    if len(acked) != len(now.agents):
        return None
    return {a.name: (a.id, a.generation) for a in now.agents}


class Follower:
    """A watcher that resumes with its last cursor whatever breaks."""

    def __init__(self, running: Running, crew: str) -> None:
        self._running = running
        self._crew = crew
        self.sequences: list[int] = []
        self._cursor = ""

    async def run(self) -> None:
        while True:
            try:
                async with connected(self._running) as client:
                    await self._read(client)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)

    async def _read(self, client: Client) -> None:
        request = cp.WatchCrewRequest(crew=self._crew, cursor=self._cursor)
        request.bookmark_interval.FromMilliseconds(500)
        async for response in client.crews.WatchCrew(request, metadata=client.metadata):
            self.sequences += [event.sequence for event in response.events]
            self._cursor = response.cursor


async def work(running: Running, crew: str) -> None:
    """Tasks, one after another; those that a kill hits may fail."""
    while True:
        try:
            async with connected(running) as client:
                task = cp.RunTaskRequest(request_id=request_id(), crew=crew, agent="planner")
                task.input.update({"mission": "count primes", "numbers": 1000})
                async for _ in client.crews.RunTask(task, timeout=20, metadata=client.metadata):
                    pass
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.05)


async def test_every_part_may_die_while_a_crew_works(fragile):
    async with connected(fragile) as client:
        members = [
            {"name": "planner", "profile": "planner"},
            {"name": "coder", "profile": "coder", "replicas": 2},
            {"name": "reviewer", "profile": "reviewer"},
        ]
        crew = await client.assemble(name="sturdy", members=members)
    before = {a.name: (a.id, a.generation) for a in crew.agents}
    follower = Follower(fragile, crew.id)
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(follower.run()), group.create_task(work(fragile, crew.id))]
        for part, words in PARTS.items():
            pids = pids_of(fragile.home, *words)
            assert pids, f"no process of {part}"
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            after = await healed(fragile, crew.id)
            assert after == before, f"after the death of {part}"
        after = await _kill_an_agent(fragile, crew.id)
        assert {n: i for n, (i, _) in after.items()} == {n: i for n, (i, _) in before.items()}
        generations = {n: g for n, (_, g) in after.items()}
        expected = {n: 2 if n == "coder-1" else 1 for n in before}
        assert generations == expected, await steps_of(fragile, crew.id)
        await _caught_up(fragile, crew.id, follower)
        for task in beside:
            task.cancel()
    assert follower.sequences == list(range(1, len(follower.sequences) + 1))
    async with connected(fragile) as client:
        await client.disband(crew.id)
    found = await leaks.settle(fragile.home)
    assert leaks.total(found) == 0, [leak for leak in found if leak.value]


async def steps_of(running: Running, crew: str) -> list[str]:
    """The agents' steps that the log tells, for the one who reads a failure."""
    async with connected(running) as client:
        request = cp.ListEventsRequest(crew=crew, page_size=500)
        events = (await client.crews.ListEvents(request, timeout=10, metadata=client.metadata)).events
    return [
        f"{e.time.ToJsonString()} {s.name} g{s.generation} {s.event} {s.reason} {s.message}"
        for e in events
        if (s := e.agent_step).event not in ("", "task_assigned", "task_completed")
    ]


async def _kill_an_agent(running: Running, crew: str) -> dict[str, tuple[str, int]]:
    async with connected(running) as client:
        victim = next(a for a in (await client.get(crew)).agents if a.name == "coder-1")
    os.kill(victim.instance.host_pid, signal.SIGKILL)
    async with asyncio.timeout(HEALED_WITHIN_S):
        while True:
            now = await healed(running, crew)
            if now["coder-1"][1] > victim.generation:
                return now


async def _caught_up(running: Running, crew: str, follower: Follower) -> None:
    async with connected(running) as client:
        head = (await client.get(crew)).last_sequence
    async with asyncio.timeout(20):
        while not follower.sequences or follower.sequences[-1] < head:
            await asyncio.sleep(0.05)


async def test_a_frozen_agent_is_replaced_by_the_watchdogs_verdict(fragile):
    """SIGSTOP: nothing exits, only silence tells. More than three intervals of 0.2 s."""
    async with connected(fragile) as client:
        profile = types_pb2.Profile(name="quick-beat")
        profile.spec.health_interval.FromMilliseconds(200)
        create = pp.CreateProfileRequest(request_id=request_id(), profile=profile)
        await client.profiles.CreateProfile(create, timeout=10, metadata=client.metadata)
        crew = await client.assemble(name="mute", members=[{"name": "mute", "profile": "quick-beat"}])
        victim = crew.agents[0]
        for pid in with_descendants(victim.instance.host_pid):
            os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            while (now := (await client.get(crew.id)).agents[0]).generation == victim.generation:
                await asyncio.sleep(0.05)
        after = await healed(fragile, crew.id)
        assert after["mute"] == (victim.id, 2)
        events = await client.crews.ListEvents(
            cp.ListEventsRequest(crew=crew.id), timeout=10, metadata=client.metadata
        )
        failed = next(e for e in events.events if e.agent_step.event == "health_failed")
        assert (failed.actor, failed.agent_step.reason) == ("watchdog", "Silent"), now
        await client.disband(crew.id)
    assert not Path(f"/proc/{victim.instance.host_pid}").exists()


async def test_a_stack_that_was_killed_whole_is_adopted(fragile):
    """kill -9 of the supervisor: its successor adopts what runs, and the crew never notices."""
    async with connected(fragile) as client:
        crew = await client.assemble(name="kept")
    before = {a.name: (a.id, a.generation) for a in crew.agents}
    pids = {part: pids_of(fragile.home, *words) for part, words in PARTS.items()}
    os.kill(fragile.process.pid, signal.SIGKILL)
    fragile.process.wait(10)
    await asyncio.to_thread(start_again, fragile)
    assert {part: pids_of(fragile.home, *words) for part, words in PARTS.items()} == pids
    assert await healed(fragile, crew.id) == before
    async with connected(fragile) as client:
        await client.disband(crew.id)
