"""Group commit: one transaction at a time, each waiter its own results, nobody left waiting for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from service_parts import agent, parts

from factory_server.core.errors import Unavailable
from factory_server.core.lifecycle import AgentEvent, AgentState, CrewState
from factory_server.core.model import Step, Stepped, StepResult
from factory_server.services.steps import BATCH_MAX, StepBatcher


class Store:
    """Commits what it is given once the test lets it; steps of generation 0 lose."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Step]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def step(self, crew: str, steps: Sequence[Step]) -> Stepped:
        self.batches.append(steps)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        results = [StepResult(s, agent(s.agent) if s.generation else None) for s in steps]
        return Stepped(results, CrewState.READY, 1)


def step(name: str = "w", generation: int = 1) -> Step:
    return Step(name, generation, (AgentState.READY,), AgentEvent.HEALTH_FAILED, "test")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def batcher(store: Store):
    made = StepBatcher("c1", parts(store=store), lambda stepped: None)
    async with asyncio.TaskGroup() as group:
        made.task = group.create_task(made.run())  # type: ignore[attr-defined]
        yield made
        made.task.cancel()  # type: ignore[attr-defined]


async def begin(group: asyncio.TaskGroup, batcher: StepBatcher, *steps: Step):
    task = group.create_task(batcher.step(steps))
    await asyncio.sleep(0)
    return task


async def test_while_one_commits_the_next_ones_gather(store, batcher):
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        waits = [await begin(group, batcher, step(f"w{n}")) for n in range(10)]
        await asyncio.sleep(0)
        store.gate.set()
    assert [len(batch) for batch in store.batches] == [1, 9]
    assert [[r.step.agent for r in w.result()] for w in waits] == [[f"w{n}"] for n in range(10)]


async def test_each_waiter_gets_its_own_results_in_order_and_lost_steps_without_a_row(store, batcher):
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        await begin(group, batcher, step("first"))
        two = await begin(group, batcher, step("a"), step("b", generation=0))
        one = await begin(group, batcher, step("c"))
        store.gate.set()
    assert [(r.step.agent, r.agent is None) for r in two.result()] == [("a", False), ("b", True)]
    assert [r.step.agent for r in one.result()] == ["c"]


async def test_the_stores_error_reaches_every_waiter_and_ends_nothing(store, batcher):
    store.gate.clear()
    store.error = Unavailable("away")
    async with asyncio.TaskGroup() as group:

        async def refused() -> None:
            with pytest.raises(Unavailable):
                await batcher.step([step()])

        for _ in range(3):
            group.create_task(refused())
        await asyncio.sleep(0)
        store.gate.set()
    store.error = None
    assert (await batcher.step([step()]))[0].agent is not None


async def test_batches_are_bounded(store, batcher):
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        for _ in range(2 * BATCH_MAX + 2):
            group.create_task(batcher.step([step()]))
        await asyncio.sleep(0.01)
        store.gate.set()
    assert max(len(batch) for batch in store.batches) <= BATCH_MAX
    assert sum(len(batch) for batch in store.batches) == 2 * BATCH_MAX + 2


async def test_a_waiter_that_gives_up_takes_nobody_with_it(store, batcher):
    store.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = await begin(group, batcher, step("first"))
        gives_up = await begin(group, batcher, step("a"))
        stays = await begin(group, batcher, step("b"))
        gives_up.cancel()
        await asyncio.sleep(0)
        store.gate.set()
    assert first.result() and stays.result()


@pytest.mark.parametrize("when", ["before it was taken", "while it commits", "after the end"])
async def test_who_waits_when_it_ends_is_told_and_not_cancelled(store, batcher, when):
    """Waiters are tasks of others (the exits lane): one that was cancelled with this would die in silence."""
    store.gate.clear()
    if when == "after the end":
        batcher.task.cancel()
        await asyncio.sleep(0)
    async with asyncio.TaskGroup() as group:

        async def told() -> None:
            with pytest.raises(Unavailable):
                await batcher.step([step()])

        if when == "before it was taken":
            first = group.create_task(told())
            await asyncio.sleep(0.01)
            assert not first.done()
        task = group.create_task(told())
        await asyncio.sleep(0.01)
        batcher.task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([task])
        assert not task.cancelled()
