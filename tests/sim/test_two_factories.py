"""Two factories on one store: the pool is never overfilled, a crew is kept by one, a dead one's crews live on."""

from __future__ import annotations

import asyncio
from typing import Any

from support.asking import assembled
from support.site import Plant, Site, until
from support.weather import on, wrapped

from factory_server.core.errors import Unavailable
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import InstanceState
from factory_server.services import reconciler

TARGET = 4


def keeps(plant: Plant, crew: str) -> bool:
    return plant.reconciler.keeper(crew) is not None


def holds(plant: Plant, agent: str) -> bool:
    return plant.factory.sessions.get(agent) is not None


async def test_the_pool_is_never_overfilled_and_nothing_is_claimed_twice(site: Site):
    one = await site.plant("f1", pool=TARGET)
    two = await site.plant("f2")
    most = 0

    async def sample() -> None:
        nonlocal most
        while True:
            rows = await one.store.list_instances()
            waiting = [r for r in rows if not r.agent and r.state is not InstanceState.DYING]
            most = max(most, len(waiting))
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(sample())
        async with asyncio.TaskGroup() as work:
            made = [work.create_task(assembled(plant, agents=2)) for plant in (one, two) for _ in range(5)]
        await until(lambda: full(one))
        sampling.cancel()
    assert most <= TARGET
    carried = [a.instance.id for m in made for a in m.result().agents if a.instance is not None]
    assert len(carried) == len(set(carried)) == 20


async def full(plant: Plant) -> bool:
    pool = (await plant.store.get_pools())[0]
    return (pool.ready, pool.starting) == (TARGET, 0)


async def test_a_dead_factorys_crews_are_taken_up_within_the_lease(site: Site):
    one, two = await site.plant("f1"), await site.plant("f2")
    crew = await assembled(one)
    assert keeps(one, crew.id)
    assert not keeps(two, crew.id), "a crew is kept by one at a time"
    await one.crash()
    within_s = reconciler.LEASE_S + 2 * reconciler.SCAN_S + 0.5
    await until(lambda: keeps(two, crew.id), within_s=within_s)
    instance = crew.agents[0].instance
    assert instance is not None
    site.host.kill(instance.id)

    async def healed() -> bool:
        row = await two.store.get_agent(crew.agents[0].id)
        return (row.state, row.generation) == (AgentState.READY, 2)

    await until(healed)


async def test_a_factory_that_could_not_renew_its_lease_lets_go_of_the_crew(site: Site):
    """Two keepers would take the agents' sessions from each other for ever."""
    weather: dict[str, Any] = {}

    async def away(verb: str, arguments: tuple[Any, ...]) -> None:
        raise Unavailable("away")

    one, two = await site.plant("f1", wrap=wrapped(on(weather))), await site.plant("f2")
    crew = await assembled(one)
    agent = crew.agents[0].id
    weather["store.lease_crews"] = away
    await until(lambda: keeps(two, crew.id))
    weather.clear()
    await until(lambda: not keeps(one, crew.id) and not holds(one, agent))
    await until(lambda: holds(two, agent))
    assert (await two.store.get_crew(crew.id)).state is CrewState.READY
    assert (await two.store.get_agent(agent)).generation == 1


async def test_a_store_that_was_away_longer_than_a_lease_costs_no_session(site: Site):
    weather: dict[str, Any] = {}

    async def away(verb: str, arguments: tuple[Any, ...]) -> None:
        raise Unavailable("away")

    plant = await site.plant("f1", wrap=wrapped(on(weather)))
    crew = await assembled(plant)
    session = plant.factory.sessions.get(crew.agents[0].id)
    weather["store.lease_crews"] = away
    scans = plant.parts.measures.trouble.labels("scan")
    enough = reconciler.LEASE_S / reconciler.SCAN_S + 2
    await until(lambda: scans._value.get() > enough, what="scans for longer than the lease")
    weather.clear()
    before = plant.reconciler._held_at[crew.id]
    await until(lambda: plant.reconciler._held_at[crew.id] > before, what="the lease is held again")
    assert plant.factory.sessions.get(crew.agents[0].id) is session
