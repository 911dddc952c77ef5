"""Closed loops: so many callers, each with its next call as soon as the last one has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from bench.samples import Samples

Call = Callable[[], Awaitable[object]]


async def latencies(call: Call, count: int, into: Samples, *, quiet: bool) -> None:
    """One caller; the milliseconds of each call."""
    for _ in range(count):
        since = time.perf_counter()
        await call()
        into.add((time.perf_counter() - since) * 1000, quiet=quiet)


async def rate(call: Call, callers: int, count: int) -> float:
    """Calls per second of so many callers."""
    left = iter(range(count))

    async def loop() -> None:
        for _ in left:
            await call()

    since = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(loop())
    return count / (time.perf_counter() - since)
