"""Crews with networks of their own: admitted, joined, healed, and gone without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.asking import ACTOR, assembled, disbanded, manifest, request_id
from support.site import Plant, Site, until

from factory_server.api.encode import Encoder
from factory_server.core import model
from factory_server.core.errors import Exhausted, FactoryError, Invalid, Refused, Unavailable
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.networks import NetworkSpec, NetworkState
from factory_server.drivers.unconnected import NoNetworks
from factory_server.services import agents, assemble
from factory_server.services.networks import READY_TARGET
from hyperfactory.v1 import crew_service_pb2, factory_service_pb2, types_pb2

BRIDGE = {"network": {"mode": "NETWORK_MODE_BRIDGE"}}


def names(site: Site, crew: model.CrewRow) -> dict[str, str]:
    """What each member's two names lead to."""
    found = {}
    for network in site.host.networks.values():
        for agent in crew.agents:
            for name in (agent.name, f"{agent.name}.crew-{crew.id}.svc"):
                if network.resolve(f"{agent.name}.crew-{crew.id}.svc"):
                    found[name] = network.resolve(name)
    return found


def addresses(crew: model.CrewRow) -> list[str]:
    return [agent.instance.address for agent in crew.agents if agent.instance]


async def only_the_pool_is_left(site: Site, plant: Plant) -> None:
    async def settled() -> bool:
        rows = await plant.store.list_networks()
        waiting = [row.state for row in rows] == [NetworkState.READY] * READY_TARGET
        return waiting and {row.id for row in rows} == set(site.host.networks)

    await until(settled, what="networks that wait, and no others")


async def profile(plant: Plant, name: str, **spec: object) -> None:
    """A generic profile with more in it."""
    row = await plant.store.get_profile("generic")
    made = types_pb2.ProfileSpec()
    made.CopyFrom(row.spec)
    made.MergeFrom(types_pb2.ProfileSpec(**spec))  # type: ignore[arg-type]
    await plant.store.create_profile(replace(row, name=name, digest=f"sha256:{name}", spec=made), None)


async def test_a_bridged_crew_is_ready_with_addresses_and_leaves_nothing(site: Site, plant: Plant) -> None:
    crew = await assembled(plant, agents=3, **BRIDGE)
    assert crew.state is CrewState.READY
    assert len(set(addresses(crew))) == 3
    where = {agent.name: agent.instance.address for agent in crew.agents if agent.instance}
    assert names(site, crew)[f"w-2.crew-{crew.id}.svc"] == where["w-2"]
    assert Encoder("").agent(crew.agents[0]).instance.address == addresses(crew)[0]
    other = await assembled(plant, **BRIDGE)
    rows = [row for row in await plant.store.list_networks() if row.crew]
    assert {row.crew for row in rows} == {crew.id, other.id}
    assert len({row.subnet for row in rows}) == 2
    await disbanded(plant, crew.id)
    assert await plant.store.crew_network(crew.id) is None
    assert rows[0].id not in site.host.networks, "gone when the answer comes"
    await disbanded(plant, other.id)
    await only_the_pool_is_left(site, plant)


async def test_a_crew_of_sockets_has_no_network(site: Site, plant: Plant) -> None:
    crew = await assembled(plant, agents=2)
    assert addresses(crew) == ["", ""]
    assert not site.host.networks
    assert not await plant.store.list_networks()


async def test_a_name_leads_to_the_successor(site: Site, plant: Plant) -> None:
    crew = await assembled(plant, agents=2, **BRIDGE)
    dead = crew.agents[0]
    assert dead.instance is not None
    site.host.kill(dead.instance.id)

    async def healed() -> model.CrewRow | None:
        row = await plant.store.get_crew(crew.id)
        return row if row.state is CrewState.READY and row.agents[0].generation == 2 else None

    row = await until(healed)
    assert all(addresses(row))
    assert names(site, row)[dead.name] == addresses(row)[0]


async def test_ports_bring_a_network_unless_sockets_are_wished(site: Site, plant: Plant) -> None:
    await profile(plant, "web", tcp_ports=[8080])
    members = [{"name": "w", "profile": "web"}]
    crew = await assembled(plant, members=members)
    assert all(addresses(crew))
    plain = await assembled(plant, members=members, network={"mode": "NETWORK_MODE_SOCKETS"})
    assert addresses(plain) == [""]
    request = factory_service_pb2.SpawnAgentRequest(request_id=request_id(), profile="web")
    alone = await agents.spawn(plant.parts, plant.reconciler, request, ACTOR)
    assert alone.instance is not None
    assert alone.instance.address
    unconnected = await assembled(plant)
    request = factory_service_pb2.SpawnAgentRequest(
        request_id=request_id(), profile="web", crew=unconnected.id
    )
    with pytest.raises(Refused, match="without a network"):
        await agents.spawn(plant.parts, plant.reconciler, request, ACTOR)


async def refused(plant: Plant, agents_: int) -> Sequence[FactoryError]:
    """What an assembly says, with and without `validate_only`; nothing may come of it."""
    told = []
    for only in (True, False):
        request = crew_service_pb2.AssembleCrewRequest(
            request_id=request_id(), manifest=manifest(agents=agents_, **BRIDGE), validate_only=only
        )
        with pytest.raises(FactoryError) as caught:
            await assemble.assemble(plant.parts, plant.reconciler, request, ACTOR)
        told.append(caught.value)
    assert not await plant.store.list_crews(model.CrewFilter(), model.Page(9))
    assert not await plant.store.list_networks()
    return told


async def test_what_cannot_be_is_refused_before_anything_is_made(site: Site, plant: Plant) -> None:
    for error in await refused(plant, 203):
        assert isinstance(error, Invalid)
        assert [v.field for v in error.violations] == ["manifest.members"]
    networks = plant.driver.networks
    for few, quota in (
        ({"networks_max": 0}, "networks"),
        ({"addresses_max": 15}, "addresses"),
        ({"instances_max": 4}, "sandboxes"),
    ):
        whole, networks.most = networks.most, replace(networks.most, **few)
        for error in await refused(plant, 5):
            assert isinstance(error, Exhausted)
            assert error.quota == quota
        networks.most = whole
    plant.driver.networks = NoNetworks("fake")  # type: ignore[assignment]
    for error in await refused(plant, 1):
        assert isinstance(error, Refused)
        assert "has no networks" in str(error)


async def test_a_crew_grows_as_far_as_its_network_reaches(plant: Plant) -> None:
    crew = await assembled(plant, agents=9, **BRIDGE)

    async def spawn(name: str) -> model.AgentRow:
        request = factory_service_pb2.SpawnAgentRequest(
            request_id=request_id(), profile="generic", crew=crew.id, name=name
        )
        return await agents.spawn(plant.parts, plant.reconciler, request, ACTOR)

    tenth = await spawn("tenth")
    assert tenth.instance is not None
    assert tenth.instance.address
    with pytest.raises(Exhausted) as caught:
        await spawn("eleventh")
    assert caught.value.quota == "addresses"


async def test_an_engine_that_stumbles_delays_a_crew_and_no_more(site: Site, plant: Plant) -> None:
    stumbles = {"create_network": 2, "join": 3, "destroy_network": 2}

    async def weather(verb: str, _: str) -> None:
        if stumbles.get(verb):
            stumbles[verb] -= 1
            raise Unavailable(f"{verb} did not answer")

    plant.driver._weather = weather
    crew = await assembled(plant, agents=2, **BRIDGE)
    assert all(addresses(crew))
    assert len(set(addresses(crew))) == 2
    await disbanded(plant, crew.id)
    await only_the_pool_is_left(site, plant)
    assert not any(stumbles.values())


async def test_what_nobody_owns_is_swept(site: Site, plant: Plant) -> None:
    """An orphan of the engine's, a row of a crew that ended, and a network that vanished while it waited."""
    crew = await assembled(plant, **BRIDGE)
    await only_waiting(plant)
    row = next(row for row in await plant.store.list_networks() if not row.crew)
    del site.host.networks[row.id]
    await plant.driver.networks.create(NetworkSpec("orphan", 28), deadline_s=1)
    leave = plant.reconciler.keeper(crew.id)._network

    async def not_now(_: model.CrewRow) -> None:
        """As if the factory had died here."""

    leave.leave = not_now
    await disbanded(plant, crew.id)
    assert await plant.store.crew_network(crew.id) is not None
    await only_the_pool_is_left(site, plant)


async def only_waiting(plant: Plant) -> None:
    async def filled() -> bool:
        rows = await plant.store.list_networks()
        return sum(row.state is NetworkState.READY for row in rows) == READY_TARGET

    await until(filled, what="networks wait")


async def test_another_factory_takes_a_bridged_crew_over(site: Site, plant: Plant) -> None:
    """It keeps the addresses of who lives, and gives one to whom it replaces."""
    crew = await assembled(plant, agents=2, **BRIDGE)
    await plant.crash()
    heir = await site.plant("f1")
    dead = crew.agents[1]
    assert dead.instance is not None
    site.host.kill(dead.instance.id)

    async def healed() -> model.CrewRow | None:
        row = await heir.store.get_crew(crew.id)
        ready = all(agent.state is AgentState.READY for agent in row.agents)
        return row if ready and row.agents[1].generation == 2 else None

    row = await until(healed)
    assert addresses(row)[0] == addresses(crew)[0]
    assert names(site, row)[dead.name] == addresses(row)[1]
    await disbanded(heir, crew.id)
    await only_the_pool_is_left(site, heir)
