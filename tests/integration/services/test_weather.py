"""One port misbehaves in one way: what may depend on it waits, and nothing else does."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.asking import assembled, broadcast, disbanded, manifest, stopped, task
from support.site import RUNTIMES, Plant, Site, until
from support.valkey import ValkeyServer
from support.weather import on, wrapped

from factory_server.core.errors import Unavailable
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.sandbox import SandboxSpec
from factory_server.services import agents, keeper, reconciler
from hyperfactory.v1 import crew_service_pb2, factory_service_pb2

SOON_S = 3.0


async def refuse(verb: str, arguments: tuple[Any, ...]) -> None:
    raise Unavailable(f"{verb} is refused")


async def hang(verb: str, arguments: tuple[Any, ...]) -> None:
    await asyncio.Event().wait()


async def spawned(plant: Plant, crew: str) -> str:
    """An agent more, which need not become READY; its id."""
    request = factory_service_pb2.SpawnAgentRequest(profile="generic", crew=crew, name="late")
    waiting = asyncio.ensure_future(  # noqa: TID251  # awaited right below
        agents.spawn(plant.parts, plant.reconciler, request, "operator/alice")
    )

    async def recorded() -> str:
        return next((a.id for a in (await plant.store.get_crew(crew)).agents if a.name == "late"), "")

    found = await until(recorded)
    waiting.cancel()
    await asyncio.wait([waiting])
    return str(found)


async def is_stopped(plant: Plant, agent: str) -> bool:
    return (await plant.store.get_agent(agent)).state is AgentState.STOPPED


async def test_an_agent_whose_instance_cannot_be_made_stops_at_once(site: Site):
    """Its backoff concerns the next attempt, not its end."""
    weather: dict[str, Any] = {}
    plant = await site.plant(wrap=wrapped(on(weather)))
    crew = await assembled(plant)
    weather["driver.create"] = refuse
    agent = await spawned(plant, crew.id)
    attempts = plant.reconciler.keeper(crew.id)._attempts
    await until(lambda: attempts.get(agent, 0) >= 4, what="a long backoff")
    await stopped(plant, agent)
    await until(lambda: is_stopped(plant, agent), within_s=1.0)


async def test_an_agent_whose_instance_hangs_while_it_is_assumed_stops_at_once(site: Site):
    weather: dict[str, Any] = {}
    plant = await site.plant(wrap=wrapped(on(weather)))
    crew = await assembled(plant)
    weather["line.assume"] = hang
    agent = await spawned(plant, crew.id)

    async def warming() -> bool:
        return (await plant.store.get_agent(agent)).state is AgentState.WARMING

    await until(warming)
    await stopped(plant, agent)
    await until(lambda: is_stopped(plant, agent), within_s=SOON_S)


async def test_a_crew_is_disbanded_though_the_bus_is_away(site: Site, plant: Plant, valkey: ValkeyServer):
    crew = await assembled(plant, agents=2)
    valkey.stop()
    async with asyncio.timeout(10):
        assert (await disbanded(plant, crew.id)).state is CrewState.DISBANDED
    assert await plant.driver.list() == []


async def test_what_the_bus_could_not_forget_is_swept_later(site: Site, monkeypatch):
    monkeypatch.setattr(reconciler, "SWEEP_S", 0.1)
    weather: dict[str, Any] = {}
    plant = await site.plant(wrap=wrapped(on(weather)))
    crew = await assembled(plant, context={"goal": 1})
    weather |= {"bus.revoke": refuse, "bus.drop_crew": refuse}
    await disbanded(plant, crew.id)
    assert await plant.bus.list_users()
    weather.clear()

    async def clean() -> bool:
        return not await plant.bus.list_users() and not await plant.bus.list_crews()

    await until(clean)


async def test_a_crew_that_expired_and_resists_is_not_looked_at_without_pause(site: Site):
    looks: Counter[str] = Counter()

    async def count(verb: str, arguments: tuple[Any, ...]) -> None:
        looks[verb] += 1

    weather: dict[str, Any] = {"store.get_crew": count}
    plant = await site.plant(wrap=wrapped(on(weather)))
    crew = await assembled(plant, ttl="1s")
    weather["driver.destroy"] = refuse

    async def draining() -> bool:
        return (await plant.store.get_crew(crew.id)).state is CrewState.DRAINING

    await until(draining)
    before = looks["store.get_crew"]
    refused = plant.parts.measures.trouble.labels("teardown")
    tries = refused._value.get() + 3
    await until(lambda: refused._value.get() >= tries, what="three more attempts to take it away")
    assert looks["store.get_crew"] - before < 30
    weather.clear()

    async def gone() -> bool:
        return (await plant.store.get_crew(crew.id)).state is CrewState.DISBANDED

    await until(gone)


async def test_answers_that_come_late_repeat_no_work(site: Site):
    """Rows that were read before a commit and arrive after it must not bring the past back."""
    work: Counter[tuple[str, str]] = Counter()

    async def count(verb: str, arguments: tuple[Any, ...]) -> None:
        if verb == "driver.create":
            work[verb, arguments[0].instance] += 1
        if verb == "line.assume":
            work[verb, f"{arguments[0].agent} {arguments[0].generation}"] += 1
        if verb == "bus.grant":
            work[verb, f"{arguments[1]} {arguments[2]}"] += 1

    async def late(verb: str, arguments: tuple[Any, ...]) -> None:
        if verb == "store.get_crew":
            await asyncio.sleep(0.05)

    plant = await site.plant(wrap=wrapped(before=count, after=late))
    crew = await assembled(plant, agents=3)
    for agent in crew.agents:
        assert agent.instance is not None
        site.host.kill(agent.instance.id)

    async def healed() -> bool:
        row = await plant.store.get_crew(crew.id)
        return row.state is CrewState.READY and all(a.generation == 2 for a in row.agents)

    await until(healed)
    assert {key: n for key, n in work.items() if n > 1} == {}
    users = {(agent, generation) for _, agent, generation in await plant.bus.list_users()}
    assert users == {(a.id, 2) for a in crew.agents}


async def test_a_death_that_nobody_heard_is_found_by_the_sweep_and_costs_one_generation(
    site: Site, monkeypatch
):
    monkeypatch.setattr(reconciler, "SWEEP_S", 0.1)
    weather: dict[str, Any] = {}
    plant = await site.plant(wrap=wrapped(on(weather)))
    crew = await assembled(plant)
    resists = await plant.driver.create(SandboxSpec("orphan"), deadline_s=5)

    async def refuse_orphan(verb: str, arguments: tuple[Any, ...]) -> None:
        if arguments[0] == resists.instance:
            raise Unavailable("it resists")

    weather["driver.destroy"] = refuse_orphan
    hubs, site.host.hubs[:] = list(site.host.hubs), []
    instance = crew.agents[0].instance
    assert instance is not None
    site.host.kill(instance.id)
    await until(lambda: site.host.instances[instance.id].ended.is_set())
    site.host.hubs[:] = hubs

    async def healed() -> bool:
        row = await plant.store.get_agent(crew.agents[0].id)
        return row.state is AgentState.READY and row.generation > 1

    await until(healed, what="the orphan that resists does not hold up the sweep")
    assert (await plant.store.get_agent(crew.agents[0].id)).generation == 2
    weather.clear()

    async def swept() -> bool:
        return [s.instance for s in await plant.driver.list()] != [resists.instance] and not any(
            s.instance == resists.instance for s in await plant.driver.list()
        )

    await until(swept)


async def test_a_task_waits_for_the_session_of_an_agent_that_is_just_adopted(site: Site, plant: Plant):
    crew = await assembled(plant)
    await plant.crash()

    async def slow(verb: str, arguments: tuple[Any, ...]) -> None:
        await asyncio.sleep(0.5)

    successor = await site.plant(wrap=wrapped(on({"bus.grant": slow})))
    assert successor.factory.sessions.get(crew.agents[0].id) is None
    row = await task(successor, crew.id, tool="echo")

    async def ended() -> Any:
        found = await successor.store.get_task(row.id)
        return found if found.ended_at else None

    found = await until(ended)
    assert b"session" not in found.result, found


async def test_receipts_outlive_a_store_that_is_away(site: Site):
    failures = iter(range(3))

    async def sometimes(verb: str, arguments: tuple[Any, ...]) -> None:
        if next(failures, None) is not None:
            raise Unavailable("away")

    plant = await site.plant(wrap=wrapped(on({"store.record_receipts": sometimes})))
    crew = await assembled(plant, agents=3)
    row = await broadcast(plant, crew.id)

    async def done() -> bool:
        return (await plant.store.get_broadcast(row.id)).done_at is not None

    await until(done, within_s=8)
    receipts = await plant.store.read_receipts(row.id, 0)
    assert [r.stage for r in receipts] == ["ACKED"] * 3
    assert not plant.factory.broadcasts._open, "what is done is forgotten"


async def test_a_roster_that_was_missed_comes_with_the_next_session(site: Site, plant: Plant):
    crew = await assembled(plant, agents=2)
    stays, goes = crew.agents
    assert stays.instance is not None
    roster = RUNTIMES[site.host.instances[stays.instance.id]].agent().parts.context.roster
    await until(lambda: roster.get(goes.name) is not None)
    await plant.crash()
    successor = await site.plant()
    await stopped(successor, goes.id)
    await until(lambda: is_stopped(successor, goes.id))
    await until(lambda: roster.get(goes.name) is None)


async def test_an_instance_that_ends_while_it_boots_is_made_again_whoever_hears_of_it(
    postgres_url: str, valkey: ValkeyServer
):
    """Another factory on the machine hears of the end, too: it must leave the intent to the agent's keeper."""
    from support.site import open_site, real_agent

    boots: Counter[str] = Counter()

    async def flaky(instance: Any) -> int:
        boots[instance.spec.instance] += 1
        if boots[instance.spec.instance] < 3:
            return 1
        return await real_agent(instance)

    async with open_site(postgres_url, valkey.url, agent=flaky) as site:
        plant = await site.plant("f1")
        await site.plant("f2")
        crew = await assembled(plant)
        assert crew.state is CrewState.READY
        assert crew.agents[0].generation == 1


@pytest.mark.parametrize(
    "verb", ["driver.create", "bus.grant", "driver.wire", "driver.publish", "store.step"]
)
async def test_a_refusal_while_an_agent_is_made_costs_no_generation(site: Site, verb: str):
    failures = iter(range(2))

    async def sometimes(called: str, arguments: tuple[Any, ...]) -> None:
        if next(failures, None) is not None:
            raise Unavailable(f"{called} is refused")

    plant = await site.plant(wrap=wrapped(on({verb: sometimes})))
    crew = await assembled(plant)
    assert (crew.state, crew.agents[0].generation) == (CrewState.READY, 1)


async def test_an_assembly_ends_at_the_ready_timeout_where_the_bus_stays_away(site: Site):
    weather = {"bus.grant": refuse}
    plant = await site.plant(wrap=wrapped(on(weather)))
    profile = await plant.store.get_profile("generic")
    profile.spec.ready_timeout.seconds = 1
    await plant.store.update_profile(profile, profile.version, None)
    request = crew_service_pb2.AssembleCrewRequest(
        request_id="00000000-0000-4000-8000-ffffffffffff",
        manifest=manifest(),
        wait=crew_service_pb2.WAIT_FOR_ACCEPTED,
    )
    from factory_server.services.assemble import assemble

    made = await assemble(plant.parts, plant.reconciler, request, "operator/alice")
    assert made.crew is not None
    ident = made.crew.id

    async def failed() -> bool:
        return (await plant.store.get_crew(ident)).state is CrewState.FAILED

    await until(failed, within_s=keeper.LOOK_AGAIN_S + 5)
    row = await plant.store.get_crew(ident)
    assert (row.reason, row.agents[0].generation) == ("ReadyTimeout", 1)
    assert await plant.driver.list() == []
