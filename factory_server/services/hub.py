"""Ring doorbells inside this process: who waits for a key wakes when it is rung."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import TracebackType
from typing import Self

REGISTRY = "registry"
"""Rung when any agent changed."""
TOOLS = "tools"
"""Rung when another process stored what an agent said of its tools."""
POOL = "pool"
"""Rung when the warm pool may need filling."""
REAPER = "reaper"
"""Rung when an instance shall be destroyed."""
NETWORKS = "networks"
"""Rung when crews' networks may need filling, or removing."""
TASK = "task/"
"""With a task's id: rung when another process ended the task that is carried here."""


class Subscription:
    """One waiter on one key; a ring between two waits is not lost."""

    def __init__(self, hub: Hub, key: str) -> None:
        self._hub = hub
        self._key = key
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._hub.add(self._key, self._event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.remove(self._key, self._event)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a ring, at most so long; whether it rang."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Hub:
    """Keys and who waits on them. A ring is a hint: the waiter looks at the store."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def subscribe(self, key: str) -> Subscription:
        """Use as a context manager."""
        return Subscription(self, key)

    def ring(self, key: str) -> None:
        """Wake everybody who waits on the key."""
        for event in self._waiters.get(key, ()):
            event.set()

    def add(self, key: str, event: asyncio.Event) -> None:
        """For Subscription."""
        self._waiters[key].add(event)

    def remove(self, key: str, event: asyncio.Event) -> None:
        """For Subscription."""
        waiters = self._waiters[key]
        waiters.discard(event)
        if not waiters:
            del self._waiters[key]
