"""One crew's events to 100 watchers at 200 a second."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc.aio
from redis.asyncio import Redis

from bench.bench import CALL_WITHIN_S, Bench
from bench.line import Line, Result, Target
from bench.samples import Samples
from bench.stack import ROOT, environment
from bench.watchers import CHANNEL, CHANNELS, WATCHERS
from embedded.postgres import EmbeddedPostgres
from embedded.valkey import EmbeddedValkey
from factory_server.bus import RedisBus
from factory_server.services.doorbells import LOG_MARK
from factory_server.store import PostgresStore
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import events_pb2

RATE_PER_S = 200
TURN_S = 5
PUTS_PER_S = 100
KEYS = 50
ANSWER_MAX_BYTES = 1 << 28
HOW = (
    f"Events at {RATE_PER_S} a second, open loop, appended to one crew's log as another replica of the factory "
    "does it: a commit in the store, then a ring of the doorbell on the bus. "
    f"{WATCHERS} WatchCrew streams through the gateway over {CHANNELS} connections, in one other Python process; "
    "latency from just before the append, and from the event's own time (its commit). A delivery that never came "
    "is a failure. The floor publishes the same to as many redis-py subscribers, one connection each, in the same "
    f"process. PutContext: {PUTS_PER_S} a second on {KEYS} keys of the crew, open loop, nobody watching. "
    "Watchers, factory and stores share the machine's cores."
)

Publish = Callable[[float], Awaitable[object]]


async def measure(bench: Bench) -> Result:
    """Turns of ours and of Redis in alternation; then the puts alone."""
    sent, committed, floor, puts = (Samples() for _ in range(4))
    crew = (await bench.spawn()).crew
    async with _sources(bench, crew) as (append, publish), _watchers(bench) as process:
        for _ in range(bench.some(0.1, 2)):
            answer = await _turn(bench, process, {"kind": "redis"}, publish)
            _take(floor, answer["sent"])
            answer = await _turn(bench, process, {"kind": "crew", "crew": crew}, append)
            _take(sent, answer["sent"])
            _take(committed, answer["committed"])
    await bench.gate.wait()
    await _open_loop(PUTS_PER_S * TURN_S, PUTS_PER_S, _put(bench, crew, puts))
    await bench.disband(crew)
    name = f"Redis pub/sub to {WATCHERS} Python subscribers"
    target = Target(p50_max=5, p99_max=25)
    return Result(
        "fanout",
        HOW,
        [
            Line("event committed → seen by each of 100 watchers", committed, target, floor, name),
            Line("append begun → seen by each of 100 watchers", sent, Target(), floor, name),
            Line(f"PutContext, open loop, {PUTS_PER_S} a second", puts),
        ],
    )


@asynccontextmanager
async def _sources(bench: Bench, crew: str) -> AsyncIterator[tuple[Publish, Publish]]:
    """One more replica's way of making an event, and plain Redis."""
    url = EmbeddedValkey(bench.stack.home).url
    store = PostgresStore(EmbeddedPostgres(bench.stack.home).url)
    await store.open()
    bus = RedisBus(url, secret=b"bench")
    redis = Redis.from_url(url)

    async def append(now: float) -> None:
        event = events_pb2.Event(type=events_pb2.EVENT_TYPE_CONTEXT, actor="bench")
        event.context.key = "progress"
        event.context.value.number_value = now
        await store.append(crew, [event])
        await bus.ring(f"bench {LOG_MARK}{crew}")

    async def publish(now: float) -> None:
        await redis.publish(CHANNEL, str(now))

    try:
        yield append, publish
    finally:
        await redis.aclose()
        await bus.close()
        await store.close()


def _put(bench: Bench, crew: str, puts: Samples) -> Publish:
    async def put(now: float) -> None:
        since = time.perf_counter()
        request = cp.PutContextRequest(request_id=str(uuid.uuid4()), crew=crew)
        request.key = f"progress-{int(now * 1e6) % KEYS}"
        request.value.number_value = now
        try:
            await bench.gateway.crews.PutContext(
                request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata
            )
        except grpc.aio.AioRpcError as error:
            puts.fail(f"{error.code().name}: {error.details()}")
            return
        puts.add((time.perf_counter() - since) * 1000)

    return put


def _take(into: Samples, found: list[float]) -> None:
    """Turns last seconds: a quiet moment at their start says little, so all are counted."""
    for value in found:
        into.add(value)
    for _ in range(WATCHERS * RATE_PER_S * TURN_S - len(found)):
        into.fail("never came")


async def _turn(
    bench: Bench, process: asyncio.subprocess.Process, what: dict[str, str], publish: Publish
) -> dict[str, list[float]]:
    await bench.gate.wait()
    events = RATE_PER_S * TURN_S
    await _say(process, {**what, "events": events, "seconds": TURN_S})
    await _hear(process)
    await _open_loop(events, RATE_PER_S, publish)
    answer: dict[str, list[float]] = await _hear(process)
    return answer


async def _open_loop(count: int, rate_per_s: int, publish: Publish) -> None:
    """Publish at the rate whatever answers."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with asyncio.TaskGroup() as group:
        for i in range(count):
            await asyncio.sleep(max(begin + i / rate_per_s - loop.time(), 0))
            group.create_task(_publish_now(publish))


async def _publish_now(publish: Publish) -> None:
    await publish(datetime.now(UTC).timestamp())


@asynccontextmanager
async def _watchers(bench: Bench) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.watchers", str(bench.stack.home)),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=ANSWER_MAX_BYTES,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _say(process: asyncio.subprocess.Process, what: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(what).encode() + b"\n")
    await process.stdin.drain()


async def _hear(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise ChildProcessError("the watchers' process ended")
    return json.loads(line)
