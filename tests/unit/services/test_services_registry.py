"""The registry's feed: a snapshot, then changes; a slow subscriber holds rows, not a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from service_parts import agent, parts

from factory_server.core.errors import Unavailable
from factory_server.core.lifecycle import AgentState
from factory_server.core.model import AgentFilter, AgentRow
from factory_server.core.ports import RegistryDelta
from factory_server.services.hub import REGISTRY
from factory_server.services.registry import Change, RegistryFeed

S = AgentState


class Store:
    """Agents that change; the mark is the number of changes."""

    def __init__(self, *agents: AgentRow) -> None:
        self.changes: list[AgentRow] = list(agents)
        self.errors = 0

    async def registry_delta(self, mark: str) -> RegistryDelta:
        if self.errors:
            self.errors -= 1
            raise Unavailable("away")
        return RegistryDelta(self.changes[int(mark or 0) :], str(len(self.changes)))


class World:
    """A feed that runs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.parts = parts(store=store)
        self.feed = RegistryFeed(self.parts)
        self.draining = asyncio.Event()

    async def change(self, *agents: AgentRow) -> None:
        self.store.changes += agents
        self.parts.hub.ring(REGISTRY)
        async with asyncio.timeout(5):
            while self.feed._mark != str(len(self.store.changes)):
                await asyncio.sleep(0)

    def watch(self, **where) -> AsyncIterator[Change]:
        return self.feed.watch(AgentFilter(**where), bookmark_s=5, draining=self.draining)


@pytest.fixture
async def world():
    made = World(Store(agent("a"), agent("b", crew="c2")))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.feed.run())
        yield made
        task.cancel()


def names(agents: Sequence[AgentRow]) -> list[tuple[str, str]]:
    return sorted((a.name, a.state.value) for a in agents)


async def snapshot(stream: AsyncIterator[Change]) -> list[AgentRow]:
    found: list[AgentRow] = []
    async for change in stream:
        if change.synced:
            return found
        found += change.agents
    raise AssertionError("no snapshot")


async def test_a_snapshot_and_then_changes(world: World):
    stream = world.watch()
    assert names(await snapshot(stream)) == [("a", "READY"), ("b", "READY")]
    await world.change(agent("a", S.BUSY))
    assert names((await anext(stream)).agents) == [("a", "BUSY")]


async def test_changes_of_one_agent_are_joined_for_a_slow_subscriber(world: World):
    stream = world.watch()
    await snapshot(stream)
    for generation in range(2, 50):
        await world.change(agent("a", S.WARMING, generation))
    change = await anext(stream)
    assert [a.generation for a in change.agents] == [49]


async def test_a_filter_hears_nothing_of_others_not_even_their_end(world: World):
    stream = world.watch(crew="c1")
    assert names(await snapshot(stream)) == [("a", "READY")]
    await world.change(agent("b", S.STOPPED, crew="c2"), agent("a", S.STOPPED))
    assert names((await anext(stream)).agents) == [("a", "STOPPED")]


async def test_who_leaves_the_filter_is_told_once(world: World):
    stream = world.watch(states=frozenset({S.READY}))
    await snapshot(stream)
    await world.change(agent("a", S.UNHEALTHY))
    assert names((await anext(stream)).agents) == [("a", "UNHEALTHY")]
    await world.change(agent("a", S.PROVISIONING))
    await world.change(agent("b", S.BUSY, crew="c2"))
    assert names((await anext(stream)).agents) == [("b", "BUSY")]


async def test_an_agent_that_stopped_is_no_longer_found(world: World):
    await world.feed.loaded.wait()
    assert world.feed.find("a-a") is not None
    await world.change(agent("a", S.STOPPED))
    assert world.feed.find("a-a") is None


async def test_repeats_are_no_change(world: World):
    stream = world.watch()
    await snapshot(stream)
    await world.change(agent("a"))
    await world.change(replace(agent("b", crew="c2"), message="new"))
    assert names((await anext(stream)).agents) == [("b", "READY")]


async def test_a_store_that_is_away_ends_nothing(world: World):
    await world.feed.loaded.wait()
    world.store.errors = 2
    for _ in range(3):
        world.parts.hub.ring(REGISTRY)
        await asyncio.sleep(0.01)
    await world.change(agent("a", S.BUSY))
    found = world.feed.find("a-a")
    assert found is not None and found.state is S.BUSY


async def test_subscribers_leave_nothing_behind(world: World):
    stream = world.watch()
    await snapshot(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert not world.feed._subscribers
