"""Hibernate, wake, stop, renew, replace and signals at once, on three stores: each race is won whole."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable

import pytest
from support.plans import fact, ready_agent, request, step

from factory_server.core.errors import FactoryError, Refused, Stale
from factory_server.core.lifecycle import AgentEvent, AgentState
from factory_server.core.model import AgentRow, InstanceState, ReceiptRow, StateRow
from factory_server.store import PostgresStore

E, S = AgentEvent, AgentState
ROUNDS, ROUNDS_MAX = 25, 500
SLEEPS_MIN = 3
WORKERS = 6
ALICE = "operator/alice"


class World:
    """One agent, many who pull at it. `value` is what its instance holds; a blob must never be older."""

    def __init__(self, replicas: list[PostgresStore], agent: AgentRow, seed: int) -> None:
        self.replicas = replicas
        self.agent = agent.id
        self.crew = agent.crew
        self.random = random.Random(seed)
        self.values = {1: 0}
        """By generation: how often its instance was worked on."""
        self.stopped = False
        self.suspension = asyncio.Lock()
        """Held while the instance is suspended: it then handles no signal."""
        self.slept = 0
        self.errors: list[FactoryError] = []

    @property
    def store(self) -> PostgresStore:
        return self.random.choice(self.replicas)

    async def look(self) -> AgentRow:
        return await self.store.get_agent(self.agent)

    async def pause(self) -> None:
        await asyncio.sleep(self.random.random() * 0.004)

    async def hibernate(self) -> None:
        """Take the state as it is now, wait, and store it if nothing came in between."""
        async with self.suspension:
            await self._suspend_and_store()

    async def _suspend_and_store(self) -> None:
        agent = await self.look()
        if agent.state is not S.READY:
            return
        data = f"{agent.generation}:{self.values[agent.generation]}".encode()
        await self.pause()
        state = StateRow(agent.generation, data, hashlib.sha256(data).hexdigest())
        sleep = step(agent, E.TTL_EXPIRED)
        done = await self.store.hibernate(self.crew, sleep, agent.updated_at, state, None)
        if done.results[0].agent is not None:
            self.slept += 1
            assert data == f"{agent.generation}:{self.values[agent.generation]}".encode(), (
                "older than its work"
            )

    async def wake(self) -> None:
        await self.store.wake_agent(self.agent, request("WakeAgent"), ALICE)

    async def work(self) -> None:
        """A lease, renewed, in which the instance's memory changes."""
        agent = await self.store.acquire(self.agent, None, ALICE, holder="h", lease_s=60)
        self.values[agent.generation] += 1
        await self.store.renew(self.agent, agent.generation, None, ALICE, holder="h", lease_s=60)
        await self.pause()
        await self.store.release(self.agent, agent.generation, None, ALICE, holder="h")

    async def signal(self) -> None:
        """A broadcast that the instance handles before it is acknowledged; a sleeper is woken for it."""
        agent = await self.look()
        opened, _ = await self.store.open_broadcast(
            self.crew, request(), ALICE, signal="x", payload=b"", agents=[(agent.id, agent.name)], ttl_s=30
        )
        async with self.suspension:
            agent = await self.look()
            handled = agent.state in (S.READY, S.BUSY)
            if handled:
                self.values[agent.generation] += 1
        await self.pause()
        stage = "ACKED" if handled else "EXPIRED"
        done = ReceiptRow(opened.id, agent.id, agent.name, agent.generation, stage, 0, 0.0)
        await self.store.record_receipts(opened.id, [done])

    async def fail(self) -> None:
        agent = await self.look()
        steps = [step(agent, E.HEALTH_FAILED)]
        sick = step(agent, E.REPLACE)
        steps.append(type(sick)(agent.id, agent.generation, (S.UNHEALTHY,), E.REPLACE, "factory"))
        await self.store.step(self.crew, steps)

    async def keep(self) -> None:
        """What the keeper does: bring a new instance to READY with the state that is kept."""
        agent = await self.look()
        if agent.state not in (S.PROVISIONING, S.WARMING) or agent.instance is None:
            return
        saved = await self.store.saved_state(self.agent)
        value = int(saved.data.decode().partition(":")[2]) if saved else 0
        more = {"sandbox": fact(agent.instance.id)} if agent.instance.state is InstanceState.STARTING else {}
        if agent.state is S.PROVISIONING:
            await self.store.step(self.crew, [step(agent, E.INSTANCE_STARTED, **more)])
            return
        self.values.setdefault(agent.generation, value)
        ready = step(agent, E.HEALTH_OK, direct="unix:///svc", **more)
        await self.store.step(self.crew, [ready])

    async def stop(self) -> None:
        await self.store.stop_agent(self.agent, None, ALICE, drain_s=0)
        self.stopped = True


async def pull(world: World, actions: list[Callable[[], Awaitable[None]]], sleeps: int = 0) -> None:
    for round_ in range(ROUNDS_MAX):
        if round_ >= ROUNDS and world.slept >= sleeps:
            return
        try:
            await world.random.choice(actions)()
        except FactoryError as error:
            world.errors.append(error)
        await world.pause()


async def check(world: World) -> None:
    """What holds at the end, whoever won."""
    assert all(isinstance(error, Refused | Stale) for error in world.errors), world.errors
    agent = await world.look()
    rows = [i for i in await world.store.list_instances() if i.agent == agent.id]
    live = [i for i in rows if i.state is not InstanceState.DYING]
    if agent.state in (S.HIBERNATING,):
        assert live == []
        saved = await world.store.saved_state(agent.id)
        assert saved is not None
        assert saved.data.decode() == f"{agent.generation}:{world.values[agent.generation]}"
    else:
        assert {i.generation for i in live} <= {agent.generation}
    if agent.state in (S.READY, S.BUSY):
        assert await world.store.saved_state(agent.id) is None
    head = (await world.store.event_bounds(world.crew))[1]
    events = [e.decode() for e in await world.store.read_events(world.crew, 0, 100_000)]
    assert [e.sequence for e in events] == list(range(1, head + 1))
    generations = [e.agent_step.generation for e in events if e.agent_step.generation]
    assert generations == sorted(generations)


@pytest.mark.parametrize("seed", range(12))
async def test_no_interleaving_loses_a_state(replicas: list[PostgresStore], seed: int) -> None:
    world = World(replicas, await ready_agent(replicas[0]), seed)
    often = [world.hibernate, world.hibernate, world.keep, world.keep]
    actions = [*often, *often, world.wake, world.wake, world.work, world.signal]
    if seed % 3 == 0:
        actions.append(world.fail)
    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(pull(world, actions, SLEEPS_MIN))
    await check(world)
    assert world.slept >= SLEEPS_MIN


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_brings_a_stopped_agent_back(replicas: list[PostgresStore], seed: int) -> None:
    world = World(replicas, await ready_agent(replicas[0]), seed)
    actions = [world.hibernate, world.wake, world.work, world.keep, world.fail]
    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(pull(world, actions))
        await asyncio.sleep(world.random.random() * 0.15)
        await world.stop()
        stopped = await world.look()
        assert stopped.state is S.DRAINING
    await check(world)
    after = await world.look()
    assert (after.state, after.generation) == (S.DRAINING, stopped.generation)
    gone = await world.store.step(world.crew, [step(after, E.DRAINED)])
    assert gone.results[0].agent is not None
    assert await world.store.saved_state(after.id) is None


async def test_one_of_many_wakers_makes_one_generation(replicas: list[PostgresStore]) -> None:
    agent = await ready_agent(replicas[0])
    state = StateRow(1, b"x", hashlib.sha256(b"x").hexdigest())
    await replicas[0].hibernate(agent.crew, step(agent, E.TTL_EXPIRED), agent.updated_at, state, None)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(replicas[n % 3].wake_agent(agent.id, request("WakeAgent"), ALICE))
            for n in range(16)
        ]
    assert {task.result().generation for task in tasks} == {2}
    assert len([i for i in await replicas[0].list_instances() if i.generation == 2]) == 1
