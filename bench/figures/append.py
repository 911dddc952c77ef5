"""Events appended per second over 100 crews, gap-free."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import psycopg
from psycopg_pool import AsyncConnectionPool

from bench.bench import Bench
from bench.line import Line, Result, Target
from bench.loops import Call, rate
from bench.samples import Samples
from factory_server.core import ids, model
from factory_server.store import PostgresStore
from factory_server.store.pool import CONNECTIONS_MAX
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import events_pb2

Pool = AsyncConnectionPool[psycopg.AsyncConnection[tuple[object, ...]]]

CREWS = 100
CALLERS = 100
EVENTS = 2000
BATCH = 10
LEASE_S = 3600.0
PAYLOAD = events_pb2.Event(
    type=events_pb2.EVENT_TYPE_CONTEXT, context=events_pb2.ContextChange(key="progress", version=1)
)
HOW = (
    "The store's own append, in the bench's process, into a database of its own in the stack's Postgres (fsync "
    "and synchronous_commit on): 100 callers spread over 100 crews, one event a transaction, and ten. The floor "
    "inserts one row a transaction without a sequence per crew, over as many connections. Afterwards every "
    "crew's log is checked for gaps."
)


async def measure(bench: Bench) -> Result:
    """Single events, and batches as the keepers' group commit makes them."""
    store = PostgresStore(bench.floors.database_url)
    await store.open()
    try:
        crews = [await _crew(store) for _ in range(CREWS)]
        lines = await _appends(bench, store, crews)
        await _check_gapless(store, crews)
    finally:
        await store.close()
    return Result("append", HOW, lines)


async def _appends(bench: Bench, store: PostgresStore, crews: Sequence[str]) -> list[Line]:
    single, batched, floor = (Samples("events/s") for _ in range(3))
    async with AsyncConnectionPool(
        bench.floors.database_url, min_size=CONNECTIONS_MAX, open=False, kwargs={"autocommit": True}
    ) as pool:
        insert = await _plain(pool)
        for _ in range(bench.some(0.25)):
            quiet = await bench.gate.wait()
            floor.add(await rate(insert, CALLERS, EVENTS), quiet=quiet)
            quiet = await bench.gate.wait()
            single.add(await rate(_append(store, crews, 1), CALLERS, EVENTS), quiet=quiet)
            quiet = await bench.gate.wait()
            batched.add(BATCH * await rate(_append(store, crews, BATCH), CALLERS, EVENTS // 2), quiet=quiet)
    name = "plain insert, one row a transaction"
    target = Target(p50_min=4000)
    return [
        Line("events appended, 1 a transaction", single, target, floor, name, rate=True),
        Line(f"events appended, {BATCH} a transaction", batched, target, floor, name, rate=True),
    ]


def _append(store: PostgresStore, crews: Sequence[str], batch: int) -> Call:
    turn = 0

    async def append() -> None:
        nonlocal turn
        turn += 1
        await store.append(crews[turn % len(crews)], [PAYLOAD] * batch)

    return append


async def _plain(pool: Pool) -> Call:
    data = PAYLOAD.SerializeToString()
    async with pool.connection() as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS plain (at timestamptz, data bytea)")

    async def insert() -> None:
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO plain VALUES (now(), %s)", [data])

    return insert


async def _crew(store: PostgresStore) -> str:
    """A crew without members: rows only."""
    crew = ids.make_id("c", int(time.monotonic() * 1000), uuid.uuid4().bytes[:5])
    plan = model.CrewPlan(crew, str(uuid.uuid4()), cp.CrewManifest(name="bench"), ())
    await store.assemble(plan, None, "bench", "bench", lease_s=LEASE_S)
    return crew


async def _check_gapless(store: PostgresStore, crews: Sequence[str]) -> None:
    for crew in crews:
        _, head = await store.event_bounds(crew)
        at = 0
        while at < head:
            for event in await store.read_events(crew, at, 500):
                at += 1
                if event.sequence != at:
                    raise AssertionError(f"crew {crew} has event {event.sequence} where {at} should be")
