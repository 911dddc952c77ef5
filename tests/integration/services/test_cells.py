"""Crews that are given a cell: a network whose members were there before them."""

from __future__ import annotations

import asyncio

from support.asking import ACTOR, assembled, disbanded, request_id, stopped
from support.site import Plant, Site, until

from factory_server.core import model
from factory_server.core.errors import Unavailable
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import InstanceState
from factory_server.core.networks import NetworkState, names_of
from factory_server.services import agents
from hyperfactory.v1 import factory_service_pb2

BRIDGE = {"network": {"mode": "NETWORK_MODE_BRIDGE"}}


async def cells(plant: Plant, count: int = 1) -> None:
    """So many wait, and nothing is left of others."""

    async def waiting() -> bool:
        rows = await plant.store.list_networks()
        instances = await plant.store.list_instances()
        ready = {row.id for row in rows if row.members and row.state is NetworkState.READY}
        dying = any(row.state is NetworkState.DYING for row in rows)
        settled = all(i.state in (InstanceState.WARM, InstanceState.OWNED) for i in instances)
        return len(ready) == count and settled and not dying

    await until(waiting, what=f"{count} cells wait")


def told(site: Site, crew: model.CrewRow) -> bool:
    """Whether all members, and they alone, are found by every member under both their names."""
    alive = [(a.name, a.instance) for a in crew.agents if a.state is not AgentState.STOPPED and a.instance]
    wished = {full: i.address for name, i in alive for full in names_of(name, crew.id)}

    def found(instance: str) -> bool:
        there = site.host.instances.get(instance)
        own = next((n for n in site.host.networks.values() if instance in n.members), None)
        if there is None or own is None:
            return False  # one that leaves is gone before its row says so
        names = there.names
        return names.keys() <= wished.keys() and wished == {n: names.get(n) or own.resolve(n) for n in wished}

    return all(found(instance.id) for _, instance in alive)


async def healed(plant: Plant, crew: str, agent: str, generation: int) -> model.CrewRow:
    async def ready() -> model.CrewRow | None:
        row = await plant.store.get_crew(crew)
        mine = next(a for a in row.agents if a.id == agent)
        return row if (mine.state, mine.generation) == (AgentState.READY, generation) else None

    row: model.CrewRow = await until(ready, what="a successor")
    return row


def count_verbs(plant: Plant) -> list[str]:
    verbs: list[str] = []

    async def note(verb: str, _: str) -> None:
        verbs.append(verb)

    plant.driver._weather = note
    return verbs


async def test_a_crew_takes_a_cell_without_making_or_joining_anything(site: Site) -> None:
    plant = await site.plant(cells=(1, 3))
    await cells(plant)
    waited = {row.id: row.address for row in await plant.store.list_instances()}
    verbs = count_verbs(plant)
    crew = await assembled(plant, agents=3, **BRIDGE)
    assert crew.state is CrewState.READY
    assert {a.instance.id: a.instance.address for a in crew.agents if a.instance} == waited
    assert told(site, crew)
    assert "join" not in verbs
    await cells(plant)
    other = await assembled(plant, agents=2, **BRIDGE)
    assert told(site, other)
    for row in (crew, other):
        await disbanded(plant, row.id)
    await cells(plant)
    networks = {row.id for row in await plant.store.list_networks()}
    assert networks == set(site.host.networks)
    assert {row.id for row in await plant.store.list_instances()} == set(site.host.instances)
    assert len(site.host.instances) == 3, "one cell is left, and nobody of the crews"


async def test_names_follow_whoever_lives(site: Site) -> None:
    """A successor from the cell and one that joins, a member more, and one that leaves."""
    plant = await site.plant(cells=(1, 3))
    await cells(plant)
    crew = await assembled(plant, agents=2, **BRIDGE)
    first = crew.agents[0]
    seen = []
    for generation in (2, 3):
        row = await plant.store.get_crew(crew.id)
        dying = next(a for a in row.agents if a.id == first.id).instance
        assert dying is not None
        site.host.kill(dying.id)
        row = await healed(plant, crew.id, first.id, generation)
        await until(lambda row=row: told(site, row), what="names of the successor")
        seen.append({i.id: i.network for i in await plant.store.list_instances() if i.agent == first.id})
    assert [any(networks.values()) for networks in seen] == [True, False], "first who waited with it"
    asked = factory_service_pb2.SpawnAgentRequest(
        request_id=request_id(), profile="generic", crew=crew.id, name="more"
    )
    more = await agents.spawn(plant.parts, plant.reconciler, asked, ACTOR)
    row = await plant.store.get_crew(crew.id)
    assert more.id in {a.id for a in row.agents}
    assert told(site, row)
    await stopped(plant, more.id)

    async def forgotten() -> bool:
        return told(site, await plant.store.get_crew(crew.id))

    await until(forgotten, what="who left is nobody's mate any more")
    await disbanded(plant, crew.id)
    await cells(plant)


async def test_a_crew_larger_than_a_cell_is_told_whole(site: Site) -> None:
    plant = await site.plant(cells=(1, 2))
    await cells(plant)
    crew = await assembled(plant, agents=5, **BRIDGE)
    assert len({a.instance.address for a in crew.agents if a.instance} - {""}) == 5
    assert told(site, crew)


async def test_a_cell_that_lost_a_member_gets_a_successor(site: Site) -> None:
    plant = await site.plant(cells=(2, 2))
    await cells(plant, 2)
    victim = (await plant.store.list_instances())[0]
    site.host.kill(victim.id)

    async def replaced() -> bool:
        return victim.network not in {row.id for row in await plant.store.list_networks()}

    await until(replaced, what="the broken cell is taken apart")
    await cells(plant, 2)
    assert victim.network not in site.host.networks
    assert len(site.host.instances) == 4


async def test_two_factories_make_no_more_than_wished(site: Site) -> None:
    async with asyncio.TaskGroup() as group:
        plants = [group.create_task(site.plant(owner, cells=(2, 2))) for owner in ("f1", "f2")]
    plant = plants[0].result()
    await cells(plant, 2)
    assert len(site.host.instances) == 4
    assert len(site.host.networks) == 2


async def test_a_crash_at_any_step_leaves_nothing_behind(site: Site) -> None:
    """The same factory comes again, and finishes or undoes what it had begun."""
    for verb, time in (("create_network", 1), ("create", 2), ("join", 2)):
        plant = await site.plant()
        reached, count = asyncio.Event(), 0

        async def weather(seen: str, _: str, verb: str = verb, time: int = time) -> None:
            nonlocal count
            count += seen == verb
            if seen == verb and count >= time:
                reached.set()  # noqa: B023
                await asyncio.Event().wait()

        plant.driver._weather = weather
        object.__setattr__(plant.parts, "cells", (1, 2))
        await until(reached.is_set, what=f"{verb} for the {time}. time")
        await plant.crash()
        heir = await site.plant(cells=(1, 2))
        await cells(heir)

        async def exact(heir: Plant = heir) -> bool:
            rows = {row.id for row in await heir.store.list_networks()}
            instances = {row.id for row in await heir.store.list_instances()}
            return rows == set(site.host.networks) and instances == set(site.host.instances)

        await until(exact, what=f"what exists is what is owned, after {verb}")
        crew = await assembled(heir, agents=2, **BRIDGE)
        object.__setattr__(heir.parts, "cells", (0, 0))
        await disbanded(heir, crew.id)

        async def empty(heir: Plant = heir) -> bool:
            for (
                row
            ) in await heir.store.list_networks():  # one may have been under way when no more were wished
                await heir.store.release_networks([row.id])
            return not (await heir.store.list_networks() or await heir.store.list_instances())

        await until(empty, what="nothing waits", within_s=45.0)
        await heir.crash()


async def test_an_engine_that_stumbles_delays_a_cell_and_no_more(site: Site) -> None:
    plant = await site.plant()
    stumbles = {"join": 1, "tell": 2}

    async def weather(verb: str, _: str) -> None:
        if stumbles.get(verb):
            stumbles[verb] -= 1
            raise Unavailable(f"{verb} did not answer")

    plant.driver._weather = weather
    object.__setattr__(plant.parts, "cells", (1, 3))
    await cells(plant)
    crew = await assembled(plant, agents=3, **BRIDGE)

    async def known() -> bool:
        return told(site, await plant.store.get_crew(crew.id))

    await until(known, what="names come in the end")
    assert not any(stumbles.values())


async def test_another_factory_takes_a_crew_of_a_cell_over(site: Site) -> None:
    """A mate that died meanwhile came with the cell; its successor joins, and no member finds the dead one."""
    plant = await site.plant(cells=(1, 2))
    await cells(plant)
    crew = await assembled(plant, agents=2, **BRIDGE)
    await plant.crash()
    dead = crew.agents[0].instance
    assert dead is not None
    site.host.kill(dead.id)
    heir = await site.plant()
    row = await healed(heir, crew.id, crew.agents[0].id, 2)
    successor = row.agents[0].instance
    assert successor is not None
    assert not successor.network
    await until(lambda: told(site, row), what="names of the successor")
