"""What every store must do with networks: one body of tests, inherited once for each implementation."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.plans import LEASE_S, OWNER, agent_plan, crew_plan, ready_agent, request

from factory_server.core.errors import Exhausted, NotFound
from factory_server.core.model import CrewPlan, InstanceState, SandboxFact
from factory_server.core.networks import NetworkLimits, NetworkRow, NetworkState, NetworkUse, NetworkWish
from factory_server.core.ports import Store

ALICE = "operator/alice"
LIMITS = NetworkLimits(networks_max=3, addresses_max=64, instances_max=100)


def bridged(members: int = 1, prefix: int = 28, limits: NetworkLimits = LIMITS) -> CrewPlan:
    return replace(crew_plan(members), network=NetworkWish(prefix, members, limits))


async def recorded(store: Store, plan: CrewPlan) -> NetworkRow:
    await store.assemble(plan, request(), ALICE, OWNER, lease_s=LEASE_S)
    row = await store.crew_network(plan.id)
    assert row is not None
    return row


async def waiting(store: Store, target: int = 1) -> NetworkRow | None:
    return await store.plan_network(28, target, NetworkWish(28, 0, LIMITS))


async def cell(store: Store, members: int = 3, target: int = 1, maker: str = OWNER) -> NetworkRow | None:
    return await store.plan_network(28, target, NetworkWish(28, members, LIMITS), maker)


async def member(store: Store, row: NetworkRow, address: str = "10.213.0.2") -> str:
    intent = await store.plan_member(row.id, "python")
    assert intent is not None
    assert await store.member_started(SandboxFact(intent.id, "fake", f"unix:///{intent.id}", 1, ""), address)
    return intent.id


async def ready_cell(store: Store, members: int = 3, target: int = 1) -> tuple[NetworkRow, list[str]]:
    """A cell that waits, and its members."""
    row = await cell(store, members, target)
    assert row is not None
    inside = [await member(store, row, f"10.213.0.{place}") for place in range(2, 2 + members)]
    ready = await store.network_started(row.id, "10.213.0.0/28")
    assert ready is not None
    return ready, inside


async def warm(store: Store, count: int) -> list[str]:
    """Instances of the pool that wait."""
    await store.set_pool("python", count, None, ALICE)
    made = await store.plan_refill("python", count, OWNER)
    for intent in made:
        assert await store.pool_started(SandboxFact(intent.id, "fake", f"unix:///{intent.id}", 1, ""))
    return [intent.id for intent in made]


async def carriers(store: Store, plan: CrewPlan) -> dict[str, str]:
    """The instances of a crew that was just recorded, with their addresses."""
    crew = (await store.assemble(plan, request(), ALICE, OWNER, lease_s=LEASE_S)).crew
    return {agent.instance.id: agent.instance.address for agent in crew.agents if agent.instance}


async def states(store: Store) -> dict[str, InstanceState]:
    return {row.id: row.state for row in await store.list_instances()}


class CellsSuite:
    """Networks whose members wait in them."""

    async def test_a_crew_is_given_a_cell_whole(self, store: Store) -> None:
        general = await warm(store, 2)
        row, inside = await ready_cell(store)
        plan = bridged(3)
        assert await carriers(store, plan) == {
            name: f"10.213.0.{place}" for place, name in enumerate(inside, 2)
        }
        owned = await store.crew_network(plan.id)
        assert owned == replace(row, state=NetworkState.OWNED, crew=plan.id)
        assert [(await states(store))[name] for name in general] == [InstanceState.WARM] * 2

    async def test_nobody_else_is_given_its_members(self, store: Store) -> None:
        """Neither a crew of sockets, nor one on another network, nor the pool's own accounts."""
        _, inside = await ready_cell(store)
        pool = await store.set_pool("python", 0, None, ALICE)
        assert (pool.ready, pool.starting) == (0, 0)
        assert len(await store.plan_refill("python", 9, OWNER)) == 0
        for plan in (crew_plan(2), bridged(2, prefix=27)):
            assert not set(await carriers(store, plan)) & set(inside)
        assert [(await states(store))[name] for name in inside] == [InstanceState.WARM] * 3

    async def test_a_larger_crew_is_filled_up_from_the_pool(self, store: Store) -> None:
        general = await warm(store, 2)
        _, inside = await ready_cell(store, members=2)
        given = await carriers(store, bridged(5))
        assert set(inside) | set(general) < set(given)
        assert sorted(filter(None, given.values())) == ["10.213.0.2", "10.213.0.3"]

    async def test_who_is_left_over_serves_its_crew_alone(self, store: Store) -> None:
        general = await warm(store, 1)
        _, inside = await ready_cell(store)
        plan = bridged(1)
        first = await carriers(store, plan)
        assert set(first) == {inside[0]}
        assert set(await carriers(store, crew_plan(1))) == set(general)
        made, _ = await store.add_agent(plan.id, agent_plan("more"), None, ALICE, OWNER, lease_s=LEASE_S)
        assert made.instance is not None
        assert (made.instance.id, made.instance.address) == (inside[1], "10.213.0.3")
        row = await store.crew_network(plan.id)
        assert row is not None
        await store.release_networks([row.id])
        assert (await states(store))[inside[2]] is InstanceState.DYING, "it waits in a network that goes"
        assert (await states(store))[inside[1]] is InstanceState.OWNED

    async def test_claimers_never_share_a_cell(self, store: Store) -> None:
        for _ in range(3):
            await ready_cell(store, target=3)
        roomy = replace(LIMITS, networks_max=9, addresses_max=999)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(carriers(store, bridged(3, limits=roomy))) for _ in range(6)]
        given = [name for task in tasks for name in task.result()]
        assert len(set(given)) == 18
        whole = [task.result() for task in tasks if all(task.result().values())]
        assert len(whole) == 3, "each cell went to one crew, whole"
        rows = await store.list_instances()
        for crew in whole:
            assert len({row.network for row in rows if row.id in crew}) == 1

    async def test_cells_are_never_more_than_wished(self, store: Store) -> None:
        assert await waiting(store) is not None, "who waits without members is counted by itself"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cell(store, target=2)) for _ in range(8)]
        assert len([task for task in tasks if task.result() is not None]) == 2

    async def test_a_cell_that_is_being_made_is_nobodys(self, store: Store) -> None:
        row = await cell(store)
        assert row is not None
        inside = await member(store, row)
        plan = bridged(1)
        assert inside not in await carriers(store, plan)
        owned = await store.crew_network(plan.id)
        assert owned is not None
        assert owned.id != row.id

    async def test_what_is_broken_goes_and_what_is_whole_stays(self, store: Store) -> None:
        whole, inside = await ready_cell(store, target=9)
        _, others = await ready_cell(store, target=9)
        begun = await cell(store, target=9)
        foreign = await cell(store, target=9, maker="factory-2")
        assert begun is not None
        assert foreign is not None
        left = await member(store, begun)
        kept = await member(store, foreign)
        await store.release_instance(others[0])
        assert await store.end_broken_cells(OWNER)
        alive = {row.id for row in await store.list_networks() if row.state is not NetworkState.DYING}
        assert alive == {whole.id, foreign.id}
        waits = {name for name, state in (await states(store)).items() if state is InstanceState.WARM}
        assert waits == {*inside, kept}
        assert left not in waits
        assert await store.plan_member(begun.id, "python") is None
        assert await store.network_started(begun.id, "10.213.0.0/28") is None
        assert not await store.end_broken_cells(OWNER)

    async def test_a_cell_of_a_crew_is_never_broken(self, store: Store) -> None:
        _, inside = await ready_cell(store)
        plan = bridged(1)
        await carriers(store, plan)
        await store.release_instance(inside[2])
        assert not await store.end_broken_cells(OWNER)
        assert await store.crew_network(plan.id) is not None


class NetworksSuite(CellsSuite):
    """Networks from wish to oblivion."""

    async def test_a_crew_has_an_intent_and_then_a_network(self, store: Store) -> None:
        plan = bridged(prefix=27)
        row = await recorded(store, plan)
        assert (row.state, row.crew, row.prefix, row.subnet) == (NetworkState.STARTING, plan.id, 27, "")
        started = await store.network_started(row.id, "10.213.0.0/27")
        assert started == replace(row, state=NetworkState.OWNED, subnet="10.213.0.0/27")
        assert list(await store.list_networks()) == [started]
        await store.release_networks([row.id])
        assert await store.crew_network(plan.id) is None
        assert await store.network_started(row.id, "10.213.0.0/27") is None
        await store.forget_network(row.id)
        assert list(await store.list_networks()) == []
        await store.forget_network(row.id)

    async def test_one_that_waits_is_taken_by_the_first_of_its_size(self, store: Store) -> None:
        intent = await waiting(store)
        assert intent is not None
        ready = await store.network_started(intent.id, "10.213.0.0/28")
        assert ready is not None
        assert ready.state is NetworkState.READY
        larger = await recorded(store, bridged(prefix=27))
        assert larger.id != ready.id
        plan = bridged()
        assert await recorded(store, plan) == replace(ready, state=NetworkState.OWNED, crew=plan.id)

    async def test_those_that_wait_are_never_more_than_wished(self, store: Store) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(waiting(store, 2)) for _ in range(8)]
        assert len([task for task in tasks if task.result() is not None]) == 2
        assert await store.network_use() == NetworkUse(0, 0, 0), "who waits takes nobody's place"

    async def test_what_has_no_room_leaves_no_trace(self, store: Store) -> None:
        for _ in range(3):
            await recorded(store, bridged())
        use = await store.network_use()
        assert (use.networks, use.addresses, use.instances) == (3, 48, 3)
        plan, key = bridged(), request()
        with pytest.raises(Exhausted) as caught:
            await store.assemble(plan, key, ALICE, OWNER, lease_s=LEASE_S)
        assert caught.value.quota == "networks"
        with pytest.raises(NotFound):
            await store.get_crew(plan.id)
        assert await store.network_use() == use
        assert await waiting(store) is None
        roomy = replace(LIMITS, networks_max=9)
        tight = replace(roomy, addresses_max=48)
        crowded = replace(roomy, instances_max=7)
        for limits, quota in ((tight, "addresses"), (crowded, "sandboxes")):
            with pytest.raises(Exhausted) as caught:
                await recorded(store, bridged(5, limits=limits))
            assert caught.value.quota == quota

    async def test_crews_at_once_never_pass_the_limit(self, store: Store) -> None:
        async def attempt() -> bool:
            try:
                await recorded(store, bridged())
            except Exhausted:
                return False
            return True

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attempt()) for _ in range(8)]
        assert sum(task.result() for task in tasks) == 3

    async def test_a_repeated_request_takes_no_second_network(self, store: Store) -> None:
        plan, key = bridged(), request()
        for _ in range(2):
            await store.assemble(plan, key, ALICE, OWNER, lease_s=LEASE_S)
        assert len(await store.list_networks()) == 1

    async def test_an_address_is_told_with_the_agent(self, store: Store) -> None:
        agent = await ready_agent(store)
        assert agent.instance is not None
        assert agent.instance.address == ""
        mark = (await store.registry_delta("")).mark
        await store.record_address(agent.instance.id, "10.213.0.2")
        await store.record_address("nobody-g1", "10.213.0.3")
        told = (await store.registry_delta(mark)).agents
        assert [a.instance.address for a in told if a.instance] == ["10.213.0.2"]
        assert [i.address for i in await store.list_instances()] == ["10.213.0.2"]
