"""What every store must do with networks: one body of tests, inherited once for each implementation."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.plans import LEASE_S, OWNER, crew_plan, ready_agent, request

from factory_server.core.errors import Exhausted, NotFound
from factory_server.core.model import CrewPlan
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


class NetworksSuite:
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
