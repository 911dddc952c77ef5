"""Agents frozen in place: what the row says is what becomes of the instance, whoever dies in between."""

from __future__ import annotations

import asyncio

import pytest
from support.asking import ACTOR, assembled, broadcast, disbanded, request_id, stopped, task
from support.site import Plant, Site, until

from factory_server.core import model, reconcile
from factory_server.core.errors import FactoryError, Refused
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.services import agents, hibernate, wake
from hyperfactory.v1 import factory_service_pb2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is in this process, and hears at once."""
    monkeypatch.setattr(reconcile, "HEARD_S", 0.1)


async def frozen(plant: Plant, agent: str) -> model.AgentRow:
    """The agent, frozen by request."""
    request = factory_service_pb2.HibernateAgentRequest(request_id=request_id(), agent=agent, light=True)
    return await hibernate.hibernate(plant.parts, plant.reconciler, request, ACTOR)


async def held(plant: Plant, site: Site, agent: str) -> model.AgentRow:
    """The agent, frozen, with its processes stopped."""
    row = await frozen(plant, agent)
    assert row.frozen_at is not None
    await until(lambda: is_stopped(site, row), what="its processes are stopped")
    return row


def is_stopped(site: Site, agent: model.AgentRow) -> bool:
    assert agent.instance is not None
    return site.host.instances[agent.instance.id].frozen


async def woken(plant: Plant, agent: str) -> model.AgentRow:
    request = factory_service_pb2.WakeAgentRequest(request_id=request_id(), agent=agent)
    return await wake.wake(plant.parts, plant.reconciler, request, ACTOR)


async def works(plant: Plant, site: Site, before: model.AgentRow) -> bool:
    """The same instance serves, and runs."""
    now = await plant.store.get_agent(before.id)
    return now.serves and now.instance == before.instance and not is_stopped(site, now)


async def test_frozen_and_thawed_it_is_the_same_instance(site: Site, plant: Plant):
    crew = await assembled(plant)
    before = crew.agents[0]
    row = await held(plant, site, before.id)
    assert (row.state, row.generation, row.instance) == (AgentState.READY, 1, before.instance)
    assert plant.factory.sessions.get(before.id) is None, "no stream that would time out in silence"
    after = await woken(plant, before.id)
    assert await works(plant, site, before)
    assert after.updated_at > row.updated_at, "it is idle from now on"


async def test_what_needs_it_wakes_it(site: Site, plant: Plant):
    """A task, a signal, a lock: each finds the agent, and leaves it in its first generation."""
    crew = await assembled(plant)
    before = crew.agents[0]
    await held(plant, site, before.id)
    given = await task(plant, crew.id)
    await until(lambda: has_ended(plant, given.id), what="the task is done")
    assert (await plant.store.get_task(given.id)).phase == "COMPLETED"
    await held(plant, site, before.id)
    sent = await broadcast(plant, crew.id)
    await until(lambda: is_heard(plant, sent.id), what="the signal is acknowledged")
    await held(plant, site, before.id)
    acquire = factory_service_pb2.AcquireAgentRequest(request_id=request_id(), agent=before.id)
    got = await agents.acquire(plant.parts, acquire, ACTOR)
    assert (got.state, got.generation, is_stopped(site, got)) == (AgentState.BUSY, 1, False)


async def has_ended(plant: Plant, ident: str) -> bool:
    return (await plant.store.get_task(ident)).ended_at is not None


async def is_heard(plant: Plant, sent: str) -> bool:
    return [r.stage for r in await plant.store.read_receipts(sent, 0)] == ["ACKED"]


async def test_a_wake_before_anything_was_stopped_stops_nothing(site: Site, plant: Plant):
    before = (await assembled(plant)).agents[0]
    await frozen(plant, before.id)
    await woken(plant, before.id)
    assert await works(plant, site, before)


async def test_one_that_dies_frozen_is_replaced_and_one_that_is_stopped_goes(site: Site, plant: Plant):
    crew = await assembled(plant, agents=2)
    dies, stops = crew.agents
    for agent in crew.agents:
        await held(plant, site, agent.id)
    assert dies.instance is not None
    site.host.kill(dies.instance.id)

    async def healed() -> bool:
        now = await plant.store.get_agent(dies.id)
        return now.serves and now.generation == 2

    await until(healed, what="its successor serves")
    await stopped(plant, stops.id)
    await until(lambda: is_gone(plant, stops.id), what="nothing of it exists")
    assert (await disbanded(plant, crew.id)).state is CrewState.DISBANDED


async def is_gone(plant: Plant, agent: str) -> bool:
    return (await plant.store.get_agent(agent)).state is AgentState.STOPPED


async def test_stored_away_it_is_stored_once_it_runs(site: Site, plant: Plant):
    before = (await assembled(plant)).agents[0]
    await held(plant, site, before.id)
    request = factory_service_pb2.HibernateAgentRequest(request_id=request_id(), agent=before.id)
    row = await hibernate.hibernate(plant.parts, plant.reconciler, request, ACTOR)
    assert (row.state, row.frozen_at) == (AgentState.HIBERNATING, None)
    assert (await woken(plant, before.id)).generation == 2


async def test_a_driver_that_cannot_says_so(plant: Plant):
    before = (await assembled(plant)).agents[0]
    plant.driver.cannot_freeze = "this driver has nothing to stop"
    with pytest.raises(Refused, match="nothing to stop"):
        await frozen(plant, before.id)
    assert (await plant.store.get_agent(before.id)).serves


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.015, 0.03])
async def test_a_factory_that_dies_in_between_is_followed_by_one_that_goes_on(site: Site, after_s: float):
    """Killed while it freezes, and again while it thaws: the row says which, and the instance comes to it."""
    plant = await site.plant()
    before = (await assembled(plant)).agents[0]
    for action in (frozen, woken, frozen, woken):
        doing = asyncio.ensure_future(action(plant, before.id))  # noqa: TID251 - awaited below
        await asyncio.sleep(after_s)
        await plant.crash()
        doing.cancel()
        await asyncio.wait([doing])
        plant = await site.plant()  # the same owner: it need not wait for a lease to end
        await until(lambda plant=plant: agrees(plant, site, before.id), what="row and instance agree")
    await woken_at_last(plant, before.id)
    assert await works(plant, site, before)


async def agrees(plant: Plant, site: Site, agent: str) -> bool:
    now = await plant.store.get_agent(agent)
    return not now.thaw_wanted and is_stopped(site, now) == (now.frozen_at is not None)


async def woken_at_last(plant: Plant, agent: str) -> None:
    async def once() -> bool:
        try:
            return (await woken(plant, agent)).serves
        except FactoryError:
            return False

    await until(once)
