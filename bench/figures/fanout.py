"""One crew's events to 100 watchers at 200 a second."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from bench.bench import CALL_WITHIN_S, Bench
from bench.line import Line, Result, Target
from bench.samples import Samples
from bench.stack import ROOT, environment
from bench.watchers import CHANNEL, WATCHERS
from embedded.valkey import EmbeddedValkey
from hyperfactory.v1 import crew_service_pb2 as cp

RATE_PER_S = 200
TURN_S = 5
ANSWER_MAX_BYTES = 1 << 28
HOW = (
    f"PutContext at {RATE_PER_S} a second, open loop, on one crew; {WATCHERS} WatchCrew streams through the "
    "gateway in one other Python process. The event's own time is its commit in the store, so that line is the "
    "fan-out alone; the other begins when the put is sent, and so includes the bus and its mirror in the store. "
    "A delivery that never came is a failure. The floor publishes the same to as many redis-py subscribers, one "
    "connection each, in the same process. Watchers, factory and stores share the machine's cores."
)

Publish = Callable[[float], Awaitable[object]]


async def measure(bench: Bench) -> Result:
    """Turns of ours and of Redis in alternation."""
    sent, committed, floor = Samples(), Samples(), Samples()
    agent = await bench.spawn()
    redis = Redis.from_url(EmbeddedValkey(bench.stack.home).url)

    async def put(now: float) -> None:
        request = cp.PutContextRequest(request_id=str(uuid.uuid4()), crew=agent.crew, key="progress")
        request.value.number_value = now
        await bench.gateway.crews.PutContext(request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)

    async def publish(now: float) -> None:
        await redis.publish(CHANNEL, str(now))

    async with _watchers(bench) as process:
        for _ in range(bench.some(0.1, 2)):
            answer = await _turn(bench, process, {"kind": "redis"}, publish)
            _take(floor, answer["sent"], bench)
            answer = await _turn(bench, process, {"kind": "crew", "crew": agent.crew}, put)
            _take(sent, answer["sent"], bench)
            _take(committed, answer["committed"], bench)
    await redis.aclose()
    await bench.disband(agent.crew)
    name = f"Redis pub/sub to {WATCHERS} Python subscribers"
    target = Target(p50_max=5, p99_max=25)
    return Result(
        "fanout",
        HOW,
        [
            Line("event committed → seen by each of 100 watchers", committed, target, floor, name),
            Line("put sent → seen by each of 100 watchers", sent, Target(), floor, name),
        ],
    )


def _take(into: Samples, found: list[float], bench: Bench) -> None:
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
    await _open_loop(events, publish)
    answer: dict[str, list[float]] = await _hear(process)
    return answer


async def _open_loop(count: int, publish: Publish) -> None:
    """Publish at the rate whatever answers."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with asyncio.TaskGroup() as group:
        for i in range(count):
            await asyncio.sleep(max(begin + i / RATE_PER_S - loop.time(), 0))
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
