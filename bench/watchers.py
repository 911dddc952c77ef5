"""Watch one crew as 100 clients do, and Redis as 100 subscribers: in a process of its own, with its own loop.

Reads a line of JSON from stdin for each turn, writes one with latencies in milliseconds for each.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from bench.connection import Caller, FactoryStubs
from bench.stack import Stack
from embedded.valkey import EmbeddedValkey
from hyperfactory.v1 import crew_service_pb2 as cp
from wire.identity import IdentityFile

WATCHERS = 100
CHANNELS = 20
CHANNEL = "bench"
QUIET_AFTER_S = 3.0

Seen = Callable[[float, float], None]


class Tally:
    """What all watchers saw: latencies from the two times an event carries."""

    def __init__(self, expected: int) -> None:
        self.sent: list[float] = []
        self.committed: list[float] = []
        self.done = asyncio.Event()
        self._expected = expected

    def see(self, sent: float, committed: float) -> None:
        """One delivery; both are seconds since the epoch."""
        now = datetime.now(UTC).timestamp()
        self.sent.append((now - sent) * 1000)
        self.committed.append((now - committed) * 1000)
        if len(self.sent) >= self._expected:
            self.done.set()

    async def wait(self, total_s: float) -> None:
        """Until everything came, or nothing more can be hoped for."""
        try:
            async with asyncio.timeout(total_s + QUIET_AFTER_S):
                await self.done.wait()
        except TimeoutError:
            return


async def main(home: Path) -> None:
    """Serve turns until stdin ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        turn = json.loads(line)
        tally = Tally(turn["events"] * WATCHERS)
        kind: Callable[..., Awaitable[None]] = _redis if turn["kind"] == "redis" else _crew
        await kind(home, turn, tally)
        _say({"sent": tally.sent, "committed": tally.committed})


async def _crew(home: Path, turn: dict[str, Any], tally: Tally) -> None:
    caller = Caller(IdentityFile(home / "pki" / "operator"))
    told = Stack(home, 0).client
    ready = asyncio.Semaphore(0)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        channels = [
            await stack.enter_async_context(caller.open(told["endpoint"], told["authority"]))
            for _ in range(CHANNELS)
        ]
        watchers = [
            group.create_task(
                _watch(FactoryStubs(channels[i % CHANNELS]), caller, turn["crew"], ready, tally.see)
            )
            for i in range(WATCHERS)
        ]
        await _announce(ready)
        await tally.wait(turn["seconds"])
        for watcher in watchers:
            watcher.cancel()


async def _watch(stubs: FactoryStubs, caller: Caller, crew: str, ready: asyncio.Semaphore, see: Seen) -> None:
    request = cp.WatchCrewRequest(crew=crew, from_latest=True, lag_policy=cp.LAG_POLICY_REPLAY)
    async for answer in stubs.crews.WatchCrew(request, metadata=caller.metadata):
        if answer.HasField("created"):
            ready.release()
        for event in answer.events:
            if event.HasField("context"):
                committed = event.time.seconds + event.time.nanos / 1e9
                see(event.context.value.number_value, committed)


async def _redis(home: Path, turn: dict[str, Any], tally: Tally) -> None:
    ready = asyncio.Semaphore(0)
    url = EmbeddedValkey(home).url
    async with asyncio.TaskGroup() as group:
        subscribers = [group.create_task(_subscribe(url, ready, tally.see)) for _ in range(WATCHERS)]
        await _announce(ready)
        await tally.wait(turn["seconds"])
        for subscriber in subscribers:
            subscriber.cancel()


async def _subscribe(url: str, ready: asyncio.Semaphore, see: Seen) -> None:
    async with Redis.from_url(url) as redis, redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(CHANNEL)
        ready.release()
        async for message in pubsub.listen():
            at = float(message["data"])
            see(at, at)


async def _announce(ready: asyncio.Semaphore) -> None:
    for _ in range(WATCHERS):
        await ready.acquire()
    _say({"ready": True})


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
