"""What every store must do about hibernation: the state goes with the step, and no race loses either."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from support.plans import advance, crew_plan, fill_pool, ready_agent, request, step

from factory_server.core.errors import Exhausted, Refused, Unavailable
from factory_server.core.lifecycle import AgentEvent, AgentState, CrewState
from factory_server.core.model import AgentRow, InstanceState, ReceiptRow, RequestKey, SandboxFact, StateRow
from factory_server.core.ports import Store

E, S = AgentEvent, AgentState
ALICE = "operator/alice"
STATE_BYTES_MAX = 16 * 1024 * 1024


def state_of(agent: AgentRow, data: bytes = b"memory") -> StateRow:
    """A state of the agent's present generation."""
    return StateRow(agent.generation, data, hashlib.sha256(data).hexdigest())


async def hibernate(
    store: Store, agent: AgentRow, data: bytes = b"memory", key: RequestKey | None = None
) -> AgentRow | None:
    """Send an agent to sleep as it was read; None where it lost."""
    sleep = step(agent, E.TTL_EXPIRED)
    done = await store.hibernate(agent.crew, sleep, agent.updated_at, state_of(agent, data), key)
    return done.results[0].agent


async def asleep(store: Store, data: bytes = b"memory") -> AgentRow:
    """An agent that hibernates."""
    row = await hibernate(store, await ready_agent(store), data)
    assert row is not None
    return row


class HibernationSuite:
    """Hibernate, wake, and what comes between."""

    async def test_the_state_is_kept_and_the_instance_dies(self, store: Store) -> None:
        agent = await ready_agent(store)
        row = await hibernate(store, agent)
        assert row is not None
        assert (row.state, row.instance, row.generation) == (S.HIBERNATING, None, 1)
        assert row == await store.get_agent(agent.id)
        assert await store.saved_state(agent.id) == state_of(agent)
        assert [i.state for i in await store.list_instances()] == [InstanceState.DYING]
        assert (await store.get_crew(agent.crew)).state is CrewState.READY

    async def test_a_state_of_the_largest_size_is_kept_and_a_larger_one_is_not(self, store: Store) -> None:
        agent = await ready_agent(store)
        with pytest.raises(Exhausted):
            await hibernate(store, agent, bytes(STATE_BYTES_MAX + 1))
        assert (await store.get_agent(agent.id)).state is S.READY
        assert await hibernate(store, agent, bytes(STATE_BYTES_MAX)) is not None

    async def test_nothing_moves_where_the_state_does_not_verify(self, store: Store) -> None:
        agent = await ready_agent(store)
        damaged = replace(state_of(agent), data=b"mem0ry")
        with pytest.raises(Unavailable):
            await store.hibernate(agent.crew, step(agent, E.TTL_EXPIRED), agent.updated_at, damaged, None)
        assert await store.get_agent(agent.id) == agent
        assert await store.saved_state(agent.id) is None

    async def test_an_agent_that_worked_since_does_not_sleep(self, store: Store) -> None:
        """READY in the same generation, and yet its state is older than its last work."""
        agent = await ready_agent(store)
        await store.acquire(agent.id, None, ALICE, holder="h", lease_s=60)
        await store.release(agent.id, 1, None, ALICE, holder="h")
        assert await hibernate(store, agent) is None
        assert await store.saved_state(agent.id) is None

    async def test_an_agent_with_a_pending_signal_does_not_sleep(self, store: Store) -> None:
        agent = await ready_agent(store)
        opened, _ = await store.open_broadcast(
            agent.crew, request(), ALICE, signal="x", payload=b"", agents=[(agent.id, agent.name)], ttl_s=30
        )
        assert await hibernate(store, agent) is None
        done = ReceiptRow(opened.id, agent.id, agent.name, 1, "ACKED", 0, 0.0)
        await store.record_receipts(opened.id, [done])
        assert await hibernate(store, agent) is not None

    async def test_waking_takes_a_warm_instance_or_wishes_for_a_cold_one(self, store: Store) -> None:
        cold = await store.wake_agent((await asleep(store)).id, None, ALICE)
        assert (cold.state, cold.generation, cold.warm) == (S.WARMING, 2, False)
        assert cold.instance is not None
        assert (cold.instance.id, cold.instance.state) == (f"{cold.uid}-g2", InstanceState.STARTING)
        sleeper = await asleep(store)
        (instance,) = await fill_pool(store, 1)
        warm = await store.wake_agent(sleeper.id, None, ALICE)
        assert warm.instance is not None
        assert (warm.state, warm.warm, warm.instance.id) == (S.WARMING, True, instance)
        assert warm.instance.state is InstanceState.OWNED
        assert warm == await store.get_agent(sleeper.id)

    async def test_a_cold_instance_is_known_with_the_step_to_ready(self, store: Store) -> None:
        woken = await store.wake_agent((await asleep(store)).id, None, ALICE)
        assert woken.instance is not None
        fact = SandboxFact(woken.instance.id, "fake", "unix:///ctl", 47, "")
        ready = step(woken, E.HEALTH_OK, direct="unix:///svc", sandbox=fact)
        row = (await store.step(woken.crew, [ready])).results[0].agent
        assert row is not None
        assert row.instance is not None
        assert (row.instance.state, row.instance.control, row.instance.direct, row.instance.host_pid) == (
            InstanceState.OWNED,
            "unix:///ctl",
            "unix:///svc",
            47,
        )
        assert row == await store.get_agent(row.id)

    async def test_the_state_stays_until_the_agent_is_ready_again(self, store: Store) -> None:
        agent = await store.wake_agent((await asleep(store)).id, None, ALICE)
        kept = await store.saved_state(agent.id)
        for event in (E.HEALTH_FAILED, E.REPLACE, E.INSTANCE_STARTED):
            agent = (await advance(store, [agent], event))[0]
            assert await store.saved_state(agent.id) == kept
        assert agent.generation == 3
        await advance(store, [agent], E.HEALTH_OK)
        assert await store.saved_state(agent.id) is None

    async def test_a_second_sleep_keeps_the_second_state(self, store: Store) -> None:
        agent = await store.wake_agent((await asleep(store, b"first")).id, None, ALICE)
        ready = (await advance(store, [agent], E.HEALTH_OK))[0]
        assert await hibernate(store, ready, b"second") is not None
        kept = await store.saved_state(agent.id)
        assert kept is not None
        assert (kept.generation, kept.data) == (2, b"second")

    async def test_the_state_goes_with_the_agent(self, store: Store) -> None:
        agent = await asleep(store)
        await store.disband(agent.crew, None, ALICE, failed=False, reason="Done", message="", drain_s=0)
        stopped = await store.get_agent(agent.id)
        assert stopped.state is S.DRAINING
        assert await store.saved_state(agent.id) is not None
        await advance(store, [stopped], E.DRAINED)
        assert await store.saved_state(agent.id) is None

    async def test_waking_is_idempotent_and_never_brings_back_what_ends(self, store: Store) -> None:
        agent, key = await asleep(store), request("WakeAgent")
        woken = await store.wake_agent(agent.id, key, ALICE)
        assert await store.wake_agent(agent.id, key, ALICE) == woken
        assert await store.wake_agent(agent.id, request("WakeAgent"), ALICE) == woken
        await store.stop_agent(agent.id, None, ALICE, drain_s=0)
        with pytest.raises(Refused):
            await store.wake_agent(agent.id, None, ALICE)
        sleeper = await asleep(store)
        await store.stop_agent(sleeper.id, None, ALICE, drain_s=0)
        with pytest.raises(Refused):
            await store.wake_agent(sleeper.id, None, ALICE)
        assert (await store.get_agent(sleeper.id)).generation == 1

    async def test_a_failed_sleep_leaves_its_request_free(self, store: Store) -> None:
        agent, key = await ready_agent(store), request("HibernateAgent")
        await store.acquire(agent.id, None, ALICE, holder="h", lease_s=60)
        assert await hibernate(store, agent, key=key) is None
        assert await store.find_request(key) is None
        rested = await store.release(agent.id, 1, None, ALICE, holder="h")
        assert await hibernate(store, rested, key=key) is not None
        assert await store.find_request(key) == agent.id

    async def test_a_crew_of_sleepers_is_ready(self, store: Store) -> None:
        plan = crew_plan(2)
        made = await store.assemble(plan, None, ALICE, "factory-1", lease_s=30)
        warming = await advance(store, made.crew.agents, E.INSTANCE_STARTED)
        for agent in await advance(store, warming, E.HEALTH_OK):
            assert await hibernate(store, agent) is not None
        assert (await store.get_crew(plan.id)).state is CrewState.READY

    async def test_a_frozen_agent_is_ready_and_serves_nobody(self, store: Store) -> None:
        agent = await ready_agent(store)
        row = await store.freeze_agent(agent, ALICE, "Idle", "", None)
        assert row is not None
        assert row == await store.get_agent(agent.id)
        assert (row.state, row.serves, row.updated_at) == (S.READY, False, agent.updated_at)
        assert await store.freeze_agent(agent, ALICE, "Idle", "", None) is None
        with pytest.raises(Refused):
            await store.acquire(agent.id, None, ALICE, holder="h", lease_s=60)
        asked = await store.wake_agent(agent.id, None, ALICE)
        assert (asked.thaw_wanted, asked.generation) == (True, 1)
        assert asked == await store.get_agent(agent.id)
        thawed = await store.thaw_agent(agent.id, 1, ALICE, "Wanted")
        assert thawed is not None
        assert thawed == await store.get_agent(agent.id)
        assert (thawed.serves, thawed.thaw_wanted, thawed.updated_at > row.updated_at) == (True, False, True)
        assert await store.thaw_agent(agent.id, 1, ALICE, "Wanted") is None
        said = [e.decode() for e in await store.read_events(agent.crew, 0, 100)]
        assert [(e.condition.type, e.condition.status) for e in said if e.HasField("condition")] == [
            ("Frozen", 1),
            ("Frozen", 2),
        ]

    async def test_an_agent_that_worked_since_is_not_frozen(self, store: Store) -> None:
        agent = await ready_agent(store)
        await store.acquire(agent.id, None, ALICE, holder="h", lease_s=60)
        await store.release(agent.id, 1, None, ALICE, holder="h")
        assert await store.freeze_agent(agent, ALICE, "Idle", "", None) is None

    async def test_whatever_moves_an_agent_thaws_its_row(self, store: Store) -> None:
        agent = await ready_agent(store)
        await store.freeze_agent(agent, ALICE, "Idle", "", None)
        (lost,) = await advance(store, [agent], E.HEALTH_FAILED)
        assert (lost.state, lost.frozen_at) == (S.UNHEALTHY, None)
