"""Subscribe to events: replay from the store after a cursor, then tail; batches; resumable for ever."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from factory_server.core import model
from factory_server.core.errors import Exhausted, OutOfRange
from factory_server.services.parts import Parts

RING_EVENTS_MAX = 4096
READ_BATCH = 500
LAG_EVENTS_MAX = 20_000
STREAM_AGE_MAX_S = 45 * 60.0
"""The server ends long streams itself, before a connection's age does it rudely."""
POLL_S = 1.0
"""The net under the doorbell: events that another replica wrote."""


@dataclass(slots=True)
class Ring:
    """The newest events of one crew, read once for all subscribers of this process."""

    events: deque[model.EncodedEvent] = field(default_factory=lambda: deque(maxlen=RING_EVENTS_MAX))
    head: int = 0
    readers: int = 0
    read_at: float = 0.0
    """When the store was asked last."""
    reading: asyncio.Event | None = None
    """Set when the read that goes on is over."""

    def after(self, sequence: int, limit: int) -> Sequence[model.EncodedEvent] | None:
        """Events after the sequence, or None where the ring no longer holds the first of them."""
        if sequence >= self.head:
            return ()
        if not self.events or self.events[0].sequence > sequence + 1:
            return None
        skip = sequence + 1 - self.events[0].sequence
        return [self.events[i] for i in range(skip, min(skip + limit, len(self.events)))]


class Feed:
    """Rings by crew; one read of the store serves every subscriber."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._rings: dict[str, Ring] = {}

    def enter(self, crew: str) -> Ring:
        """The crew's ring, held while it has readers."""
        ring = self._rings.setdefault(crew, Ring())
        ring.readers += 1
        return ring

    def leave(self, crew: str) -> None:
        """A reader goes."""
        ring = self._rings[crew]
        ring.readers -= 1
        if ring.readers == 0:
            del self._rings[crew]

    async def read(self, crew: str, ring: Ring, after: int) -> Sequence[model.EncodedEvent]:
        """Up to a batch of events after the sequence: from the ring, refreshed if need be, or from the store."""
        asked = time.monotonic()
        while after >= ring.head and ring.read_at < asked:
            # One reads for all; what began before this was asked may be too old.
            if ring.reading is None:
                await self._read_on(crew, ring)
            else:
                await ring.reading.wait()
        found = ring.after(after, READ_BATCH)
        if found is None:
            return await self._parts.store.read_events(crew, after, READ_BATCH)
        return found

    async def _read_on(self, crew: str, ring: Ring) -> None:
        """Read what is new, and wake all who wait for it at once."""
        over = ring.reading = asyncio.Event()
        try:
            await self._refresh(crew, ring)
        finally:
            ring.reading = None
            over.set()

    async def _refresh(self, crew: str, ring: Ring) -> None:
        if not ring.events:
            _, head = await self._parts.store.event_bounds(crew)
            ring.head = max(ring.head, head - READ_BATCH // 2, 0) if ring.head == 0 else ring.head
        ring.read_at = time.monotonic()
        fresh = await self._parts.store.read_events(crew, ring.head, READ_BATCH)
        ring.events.extend(fresh)
        if fresh:
            ring.head = fresh[-1].sequence


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events a subscriber wants; empty means all."""

    types: frozenset[int] = frozenset()
    agents: frozenset[str] = frozenset()

    def takes(self, event: model.EncodedEvent) -> bool:
        """Whether it passes the filter."""
        return (not self.types or event.type in self.types) and (
            not self.agents or event.agent in self.agents
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What a subscriber gets at once. `position` is where to continue; `bookmark`: nothing new."""

    events: Sequence[model.EncodedEvent]
    position: str
    bookmark: bool = False
    draining: bool = False
    skipped: int = 0
    live: bool = False
    """The subscriber had everything before these events: they are as fresh as they come."""


async def watch_crew(
    parts: Parts,
    feed: Feed,
    crew: str,
    after: int,
    wanted: Wanted,
    *,
    bookmark_s: float,
    on_lag: str,
    draining: asyncio.Event,
) -> AsyncIterator[Batch]:
    """Events of one crew after the sequence, for ever. OutOfRange, Exhausted (SUBSCRIBER_TOO_SLOW)."""
    await _check_kept(parts, crew, after)
    ring = feed.enter(crew)
    ends = time.monotonic() + STREAM_AGE_MAX_S
    said = time.monotonic()
    caught_up = False
    try:
        with parts.hub.subscribe(crew) as rings:
            while not draining.is_set() and time.monotonic() < ends:
                events = await feed.read(crew, ring, after)
                if events:
                    after = events[-1].sequence
                    taken = [e for e in events if wanted.takes(e)]
                    if taken:
                        said = time.monotonic()
                        yield Batch(taken, str(after), live=caught_up)
                    if caught_up and ring.head - after > LAG_EVENTS_MAX:
                        skip = _lagging(on_lag, ring.head - after, str(after))
                        if skip:
                            after = ring.head
                            yield Batch((), str(after), skipped=skip)
                    if not caught_up or after < ring.head:
                        continue
                    # Whatever is committed since rings: no need to ask the store after each event.
                caught_up = True
                if time.monotonic() - said >= bookmark_s:
                    said = time.monotonic()
                    yield Batch((), str(after), bookmark=True)
                await rings.wait(min(POLL_S, max(bookmark_s - (time.monotonic() - said), 0.01)))
            yield Batch((), str(after), draining=True)
    finally:
        feed.leave(crew)


async def watch_all(
    parts: Parts, mark: str, wanted: Wanted, *, bookmark_s: float, draining: asyncio.Event
) -> AsyncIterator[Batch]:
    """Events of all crews after the mark, for ever."""
    ends = time.monotonic() + STREAM_AGE_MAX_S
    said = time.monotonic()
    with parts.hub.subscribe(ALL) as rings:
        while not draining.is_set() and time.monotonic() < ends:
            events, mark = await parts.store.read_all_events(mark, READ_BATCH)
            taken = [e for e in events if wanted.takes(e)]
            if taken:
                said = time.monotonic()
                yield Batch(taken, mark)
            if events:
                continue
            if time.monotonic() - said >= bookmark_s:
                said = time.monotonic()
                yield Batch((), mark, bookmark=True)
            await rings.wait(min(POLL_S, max(bookmark_s - (time.monotonic() - said), 0.01)))
        yield Batch((), mark, draining=True)


ALL = "-"
"""The hub's key, and the contract's word, for all crews."""


async def _check_kept(parts: Parts, crew: str, after: int) -> None:
    oldest, _ = await parts.store.event_bounds(crew)
    if after + 1 < oldest:
        raise OutOfRange(
            f"cannot continue after event {after}: the oldest kept is {oldest}",
            metadata={"oldest_cursor": str(oldest - 1)},
        )


def _lagging(policy: str, behind: int, position: str) -> int:
    """How many events to skip; raises where the policy is to disconnect, 0 where it is to replay."""
    if policy == "SKIP_TO_LATEST":
        return behind
    if policy == "REPLAY":
        return 0
    raise Exhausted(
        f"reads too slowly: {behind} events behind",
        reason="SUBSCRIBER_TOO_SLOW",
        metadata={"cursor": position},
        quota="subscriber lag",
    )
