"""Subscribers get each event once and in order, from the ring or from the store, however things interleave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_parts import event, parts

from factory_server.core.errors import Exhausted, OutOfRange
from factory_server.core.model import EncodedEvent
from factory_server.services import watch
from factory_server.services.hub import Hub
from factory_server.services.watch import Feed, Ring, Wanted, watch_crew

ALL = Wanted()
WATCHERS = 20
SETTLED_TURNS = 50


class Store:
    """A log that can be compacted; reads yield to other tasks."""

    def __init__(self, head: int = 0) -> None:
        self.log = [event(n) for n in range(1, head + 1)]
        self.oldest = 1
        self.reads = 0

    def append(self, count: int = 1, kind: int = 1) -> None:
        head = len(self.log)
        self.log += [event(head + n, kind) for n in range(1, count + 1)]

    async def read_events(self, crew: str, after: int, limit: int) -> Sequence[EncodedEvent]:
        self.reads += 1
        found = [e for e in self.log[max(after, 0) : after + limit] if e.sequence >= self.oldest]
        await asyncio.sleep(0)
        return found

    async def event_bounds(self, crew: str) -> tuple[int, int]:
        await asyncio.sleep(0)
        return self.oldest, len(self.log)


async def read_all(feed: Feed, ring: Ring, upto: int, got: list[int], pauses: list[int]) -> None:
    after = 0
    while after < upto:
        events = await feed.read("c1", ring, after)
        got += [e.sequence for e in events]
        after = got[-1] if got else 0
        for _ in range(pauses.pop() if pauses else 0):
            await asyncio.sleep(0)
        await asyncio.sleep(0)


async def interleave(appends: list[int], readers: list[list[int]]) -> list[list[int]]:
    store = Store()
    feed = Feed(parts(store=store))
    ring = feed.enter("c1")
    everything: list[list[int]] = [[] for _ in readers]
    async with asyncio.TaskGroup() as group:
        for got, pauses in zip(everything, readers, strict=True):
            group.create_task(read_all(feed, ring, sum(appends), got, list(pauses)))
        for count in appends:
            store.append(count)
            await asyncio.sleep(0)
    return everything


@given(
    st.lists(st.integers(1, 900), min_size=1, max_size=8),
    st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=4),
)
def test_any_interleaving_yields_each_event_once_and_in_order(appends, readers):
    with asyncio.Runner() as runner:
        for got in runner.run(interleave(appends, readers)):
            assert got == list(range(1, sum(appends) + 1))


async def test_who_is_behind_the_ring_reads_from_the_store(monkeypatch):
    store = Store(head=3 * watch.RING_EVENTS_MAX)
    feed = Feed(parts(store=store))
    ring = feed.enter("c1")
    got: list[int] = []
    await read_all(feed, ring, len(store.log), got, [])
    assert got == list(range(1, len(store.log) + 1))


async def test_one_read_of_the_store_serves_all_subscribers():
    store = Store(head=10)
    feed = Feed(parts(store=store))
    ring = feed.enter("c1")
    await feed.read("c1", ring, 0)
    before = store.reads
    store.append()
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(feed.read("c1", ring, 10)) for _ in range(50)]
    assert [[e.sequence for e in f.result()] for f in found] == [[11]] * 50
    assert store.reads == before + 1


async def test_an_event_costs_one_read_however_many_watch_it_live():
    store = Store(head=1)
    given_parts, draining = parts(store=store), asyncio.Event()
    feed = Feed(given_parts)
    seen: list[int] = []

    async def watch_live() -> None:
        async for batch in watch_crew(
            given_parts, feed, "c1", 1, ALL, bookmark_s=60, on_lag="REPLAY", draining=draining
        ):
            seen.extend(e.sequence for e in batch.events)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(WATCHERS):
            group.create_task(watch_live())
        await until_all_wait(given_parts.hub, "c1")
        before = store.reads
        for sequence in (2, 3):
            store.append()
            given_parts.hub.ring("c1")
            while seen.count(sequence) < WATCHERS:
                await asyncio.sleep(0)
        draining.set()
        given_parts.hub.ring("c1")
    # The third is that of the last ring, with which they look whether they shall go on.
    assert store.reads - before <= 3


async def until_all_wait(hub: Hub, key: str) -> None:
    """Everybody has seen that there is nothing more, and waits for a ring."""
    while len(hub._waiters.get(key, ())) < WATCHERS:
        await asyncio.sleep(0)
    for _ in range(SETTLED_TURNS):
        await asyncio.sleep(0)


async def test_a_ring_lives_as_long_as_its_readers():
    feed = Feed(parts(store=Store()))
    assert feed.enter("c1") is feed.enter("c1")
    feed.leave("c1")
    assert "c1" in feed._rings
    feed.leave("c1")
    assert not feed._rings


async def follow(store: Store, upto: int, wanted: Wanted = ALL, **options) -> list[int]:
    given_parts = options.pop("parts", None) or parts(store=store)
    draining = asyncio.Event()
    got: list[int] = []
    stream = watch_crew(
        given_parts,
        Feed(given_parts),
        "c1",
        options.pop("after", 0),
        wanted,
        bookmark_s=options.pop("bookmark_s", 5),
        on_lag=options.pop("on_lag", "DISCONNECT"),
        draining=draining,
    )
    async for batch in stream:
        got += [e.sequence for e in batch.events]
        if int(batch.position) >= upto:
            draining.set()
    return got


async def test_a_filter_passes_over_what_is_not_wanted_and_the_position_moves_on():
    store = Store()
    store.append(3, kind=1)
    store.append(2, kind=2)
    store.append(1, kind=1)
    assert await follow(store, 6, Wanted(types=frozenset({2})), bookmark_s=0.05) == [4, 5]


async def test_what_was_compacted_cannot_be_continued():
    store = Store(head=100)
    store.oldest = 51
    with pytest.raises(OutOfRange) as refused:
        await follow(store, 100, after=10)
    assert refused.value.metadata == {"oldest_cursor": "50"}
    assert await follow(store, 100, after=50) == list(range(51, 101))


async def test_a_quiet_crew_sends_bookmarks():
    store = Store(head=1)
    given_parts = parts(store=store)
    draining = asyncio.Event()
    stream = watch_crew(
        given_parts,
        Feed(given_parts),
        "c1",
        1,
        Wanted(),
        bookmark_s=0.02,
        on_lag="REPLAY",
        draining=draining,
    )
    async with asyncio.timeout(5):
        assert (await anext(stream)).bookmark
        draining.set()
        async for batch in stream:
            last = batch
        assert last.draining


@pytest.mark.parametrize(
    ("policy", "expected"), [("REPLAY", 0), ("SKIP_TO_LATEST", 30_000), ("DISCONNECT", None)]
)
def test_a_subscriber_that_lags_is_treated_as_it_asked(policy, expected):
    if expected is not None:
        assert watch._lagging(policy, 30_000, "7") == expected
        return
    with pytest.raises(Exhausted) as refused:
        watch._lagging(policy, 30_000, "7")
    assert (refused.value.reason, refused.value.metadata["cursor"]) == ("SUBSCRIBER_TOO_SLOW", "7")
