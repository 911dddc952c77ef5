"""What every store must do: one body of tests, inherited once for each implementation.

A test class provides the fixture `store`, an open and empty store.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from google.protobuf import struct_pb2
from google.rpc import status_pb2
from support.plans import (
    LEASE_S,
    OWNER,
    advance,
    agent_plan,
    assemble,
    crew_plan,
    fact,
    fill_pool,
    profile,
    ready_agent,
    ready_crew,
    request,
    started,
    step,
)

from factory_server.core.errors import AlreadyExists, FactoryError, Invalid, NotFound, Refused, Stale
from factory_server.core.lifecycle import AgentEvent, AgentState, CrewState
from factory_server.core.model import (
    AgentFilter,
    AuditRow,
    ContextRow,
    CrewFilter,
    CrewRow,
    HealthFact,
    InstanceState,
    Page,
    ReceiptRow,
)
from factory_server.core.ports import Store
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2, events_pb2

E, S = AgentEvent, AgentState
ALICE = "operator/alice"


def reason_of(caught: pytest.ExceptionInfo[FactoryError]) -> str:
    return caught.value.reason


async def moves_of(store: Store, crew: str) -> list[str]:
    """The crew's AGENT_STATE events as words."""
    events = [event.decode() for event in await store.read_events(crew, 0, 1000)]
    return [e.agent_step.event for e in events if e.type == events_pb2.EVENT_TYPE_AGENT_STATE]


async def ended_crew(store: Store) -> CrewRow:
    """A disbanded crew of which nothing runs any more, with something of every kind to remember."""
    crew = await ready_crew(store)
    agent = crew.agents[0]
    await store.open_broadcast(
        crew.id,
        request("Broadcast"),
        ALICE,
        signal="PING",
        payload=b"",
        agents=[(agent.id, agent.name)],
        ttl_s=1.0,
    )
    gone = await store.disband(crew.id, None, ALICE, failed=False, reason="Done", message="", drain_s=9)
    await advance(store, gone.agents, E.DRAINED)
    await store.forget_instances([instance.id for instance in await store.dying_instances(99)])
    return await store.get_crew(crew.id)


class CrewSuite:
    """Crews are recorded whole, found again and read in order."""

    async def test_a_cold_crew_is_provisioning_with_intents(self, store: Store) -> None:
        plan = crew_plan(2, ttl_s=60, labels={"team": "red"})
        made = await store.assemble(plan, request(), ALICE, OWNER, lease_s=LEASE_S)
        crew = made.crew
        assert not made.replayed
        assert (crew.id, crew.state, crew.manifest) == (plan.id, CrewState.ASSEMBLING, plan.manifest)
        assert crew.expires_at == crew.created_at + timedelta(seconds=60)
        for agent, planned in zip(crew.agents, plan.agents, strict=True):
            assert (agent.state, agent.generation, agent.warm) == (S.PROVISIONING, 1, False)
            assert (agent.spec, agent.labels, agent.scope) == (planned.spec, {"team": "red"}, "coder")
            assert agent.instance is not None
            assert (agent.instance.id, agent.instance.state) == (f"{planned.uid}-g1", InstanceState.STARTING)
        assert crew == await store.get_crew(crew.id)

    async def test_a_warm_crew_owns_pool_instances(self, store: Store) -> None:
        warm = await fill_pool(store, 2)
        crew = await assemble(store, agents=3)
        carried = [agent for agent in crew.agents if agent.warm]
        assert {agent.instance.id for agent in carried if agent.instance} == set(warm)
        assert {agent.state for agent in carried} == {S.WARMING}
        assert await moves_of(store, crew.id) == [
            "requested",
            "instance_started",
            "requested",
            "instance_started",
            "requested",
        ]
        pool = (await store.get_pools())[0]
        assert (pool.ready, pool.claimed, pool.missed) == (0, 2, 1)

    async def test_events_begin_with_the_crew_and_have_no_gap(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        events = [event.decode() for event in await store.read_events(crew.id, 0, 100)]
        assert [event.sequence for event in events] == list(range(1, crew.last_sequence + 1))
        assert events[0].crew_step.to == 1
        assert events[-1].crew_step.to == 2
        assert {event.crew for event in events} == {crew.id}
        assert all(event.HasField("time") for event in events)

    async def test_the_same_request_makes_one_crew(self, store: Store) -> None:
        key = request()
        first = await store.assemble(crew_plan(), key, ALICE, OWNER, lease_s=LEASE_S)
        second = await store.assemble(crew_plan(), key, ALICE, OWNER, lease_s=LEASE_S)
        assert second.replayed
        assert second.crew.id == first.crew.id

    async def test_a_reused_request_id_is_refused(self, store: Store) -> None:
        key = request()
        await store.assemble(crew_plan(), key, ALICE, OWNER, lease_s=LEASE_S)
        other = replace(key, request_hash=b"2")
        with pytest.raises(Invalid) as caught:
            await store.assemble(crew_plan(), other, ALICE, OWNER, lease_s=LEASE_S)
        assert reason_of(caught) == "REQUEST_ID_REUSED"

    async def test_a_name_is_free_again_once_its_agent_stopped(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        with pytest.raises(AlreadyExists) as caught:
            await store.add_agent(crew.id, agent_plan("w-0"), None, ALICE, OWNER, lease_s=LEASE_S)
        assert caught.value.metadata == {"name": "w-0"}
        draining = await store.stop_agent(crew.agents[0].id, None, ALICE, drain_s=0)
        await advance(store, [draining], E.DRAINED)
        added, replayed = await store.add_agent(
            crew.id, agent_plan("w-0"), None, ALICE, OWNER, lease_s=LEASE_S
        )
        assert (added.name, added.state, replayed) == ("w-0", S.PROVISIONING, False)

    async def test_no_agent_joins_a_crew_that_shall_go(self, store: Store) -> None:
        crew = await assemble(store)
        await store.disband(crew.id, None, ALICE, failed=False, reason="", message="", drain_s=0)
        with pytest.raises(Refused):
            await store.add_agent(crew.id, agent_plan("late"), None, ALICE, OWNER, lease_s=LEASE_S)

    async def test_adding_twice_with_one_request_adds_one(self, store: Store) -> None:
        crew, key = await assemble(store), request("Spawn")
        first, _ = await store.add_agent(crew.id, agent_plan("x"), key, ALICE, OWNER, lease_s=LEASE_S)
        second, replayed = await store.add_agent(crew.id, agent_plan("x"), key, ALICE, OWNER, lease_s=LEASE_S)
        assert (second.id, replayed) == (first.id, True)

    async def test_an_update_is_one_transaction_and_a_repeat_says_the_same(self, store: Store) -> None:
        crew, key = await ready_crew(store, agents=2), request("Update")
        manifest = crew_service_pb2.CrewManifest(
            name="demo",
            members=[crew_service_pb2.CrewMember(name=n, profile="coder") for n in ("w-0", "w-1", "w-9")],
        )
        manifest.labels["team"] = "blue"
        manifest.ttl.seconds = 600
        plan = replace(crew_plan(), manifest=manifest, agents=[agent_plan(m.name) for m in manifest.members])
        for replayed in (False, True):
            done = await store.update_crew(crew.id, plan, key, ALICE, OWNER, drain_s=9, lease_s=LEASE_S)
            assert (done.added, done.removed, done.replayed) == (["w-9"], [], replayed)
        states = {a.name: a.state for a in done.crew.agents}
        assert states == {"w-0": S.READY, "w-1": S.READY, "w-9": S.PROVISIONING}
        assert done.crew.expires_at == crew.created_at + timedelta(seconds=600)
        assert dict(done.crew.manifest.labels) == {"team": "blue"}
        events = [event.decode() for event in await store.read_events(crew.id, crew.last_sequence, 9)]
        assert [e.crew_step.message or e.agent_step.event for e in events] == ["added w-9", "requested", ""]
        found = await store.list_crews(CrewFilter(labels={"team": "blue"}), Page(9))
        assert [row.id for row in found] == [crew.id]

    async def test_members_leave_by_an_update_as_by_a_stop(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        names = [crew_service_pb2.CrewMember(name="w-0", profile="coder")]
        one = crew_service_pb2.CrewManifest(name="demo", members=names)
        plan = replace(crew_plan(), manifest=one, agents=[agent_plan("w-0")])
        done = await store.update_crew(crew.id, plan, request("U"), ALICE, OWNER, drain_s=0, lease_s=LEASE_S)
        assert done.removed == ["w-1"]
        gone = next(a for a in done.crew.agents if a.name == "w-1")
        assert (gone.state, gone.reason) == (S.DRAINING, "Updated")

    async def test_what_is_unknown_is_not_found(self, store: Store) -> None:
        for call in (store.get_crew("x"), store.get_agent("x"), store.get_task("x"), store.get_profile("x")):
            with pytest.raises(NotFound) as caught:
                await call
            assert caught.value.resource_name == "x"
        with pytest.raises(NotFound):
            await store.step("x", [])
        with pytest.raises(NotFound):
            await store.append("x", [events_pb2.Event()])

    async def test_lists_are_filtered_and_paged_in_order(self, store: Store) -> None:
        crews = [await assemble(store, name=f"n{i % 2}", labels={"n": str(i)}) for i in range(5)]
        await store.disband(crews[4].id, None, ALICE, failed=False, reason="", message="", drain_s=0)
        agent = (await store.get_crew(crews[4].id)).agents[0]
        await advance(store, [agent], E.DRAINED)
        ids = [crew.id for crew in crews]
        assert [c.id for c in await store.list_crews(CrewFilter(), Page(10))] == ids[:4]
        assert [c.id for c in await store.list_crews(CrewFilter(), Page(1, ids[0]))] == ids[1:3]
        assert [c.id for c in await store.list_crews(CrewFilter(name="n1"), Page(9))] == [ids[1], ids[3]]
        assert [c.id for c in await store.list_crews(CrewFilter(labels={"n": "2"}), Page(9))] == [ids[2]]
        gone = CrewFilter(states=frozenset({CrewState.DISBANDED}))
        assert [c.id for c in await store.list_crews(gone, Page(9))] == [ids[4]]
        agents = await store.list_agents(AgentFilter(), Page(9))
        assert [a.crew for a in agents] == ids[:4]
        assert list(await store.list_agents(AgentFilter(crew=ids[1]), Page(9))) == [agents[1]]
        assert not await store.list_agents(AgentFilter(profile="other"), Page(9))
        stopped = AgentFilter(states=frozenset({S.STOPPED}))
        assert [a.crew for a in await store.list_agents(stopped, Page(9))] == [ids[4]]

    async def test_the_registry_tells_changes_and_nothing_of_health(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        everything = await store.registry_delta("")
        assert {agent.id for agent in everything.agents} == {agent.id for agent in crew.agents}
        quiet = await store.registry_delta(everything.mark)
        agent = crew.agents[0]
        await store.record_health([HealthFact(agent.id, 1, 0, await store.now())])
        assert not (await store.registry_delta(quiet.mark)).agents
        await advance(store, [agent], E.HEALTH_FAILED)
        changed = await store.registry_delta(quiet.mark)
        assert [(a.id, a.state) for a in changed.agents] == [(agent.id, S.UNHEALTHY)]

    async def test_crews_are_leased_to_one_owner_until_given_back(self, store: Store) -> None:
        crew = await assemble(store)
        assert not await store.lease_crews("factory-2", lease_s=30, limit=10)
        assert list(await store.lease_crews(OWNER, lease_s=30, limit=10)) == [crew.id]
        await store.release_crews(OWNER)
        assert list(await store.lease_crews("factory-2", lease_s=0, limit=10)) == [crew.id]
        assert list(await store.lease_crews(OWNER, lease_s=30, limit=10)) == [crew.id]

    async def test_settled_crews_are_leased_to_nobody(self, store: Store) -> None:
        crew = await assemble(store)
        await store.disband(crew.id, None, ALICE, failed=True, reason="Broken", message="m", drain_s=0)
        assert list(await store.lease_crews(OWNER, lease_s=30, limit=10)) == [crew.id]
        await advance(store, [(await store.get_crew(crew.id)).agents[0]], E.DRAINED)
        assert not await store.lease_crews(OWNER, lease_s=30, limit=10)
        ended = await store.get_crew(crew.id)
        assert (ended.state, ended.reason, ended.message) == (CrewState.FAILED, "Broken", "m")


class StepSuite:
    """Agents move by compare-and-swap along the table, and crews follow."""

    async def test_a_life_from_wish_to_ready(self, store: Store) -> None:
        crew = await assemble(store)
        agent = crew.agents[0]
        done = await store.step(crew.id, [started(agent)])
        warming = done.results[0].agent
        assert warming is not None
        assert warming.instance is not None
        assert (warming.state, warming.instance.state) == (S.WARMING, InstanceState.OWNED)
        assert warming.instance.host_pid == 4711
        done = await store.step(crew.id, [step(warming, E.HEALTH_OK, direct="unix:///svc.sock")])
        ready = done.results[0].agent
        assert ready is not None
        assert ready.instance is not None
        assert (ready.state, ready.instance.direct) == (S.READY, "unix:///svc.sock")
        assert done.crew_state is CrewState.READY
        assert ready == await store.get_agent(agent.id)
        settled = await store.get_crew(crew.id)
        assert settled.ready_at == ready.ready_at
        assert settled.last_sequence == done.last_sequence

    async def test_a_stale_step_changes_nothing(self, store: Store) -> None:
        agent = await ready_agent(store)
        before = await store.get_crew(agent.crew)
        old = replace(step(agent, E.HEALTH_FAILED), generation=0)
        elsewhere = replace(step(agent, E.HEALTH_FAILED), sources=(S.BUSY,))
        unknown = replace(step(agent, E.HEALTH_FAILED), agent="nobody")
        forbidden = step(agent, E.REPLACE)
        done = await store.step(agent.crew, [old, elsewhere, unknown, forbidden])
        assert [result.agent for result in done.results] == [None] * 4
        assert await store.get_crew(agent.crew) == before

    async def test_a_late_start_of_another_instance_loses(self, store: Store) -> None:
        agent = (await assemble(store)).agents[0]
        done = await store.step(agent.crew, [step(agent, E.INSTANCE_STARTED, sandbox=fact("other"))])
        assert done.results[0].agent is None

    async def test_steps_of_one_agent_follow_each_other(self, store: Store) -> None:
        agent = (await assemble(store)).agents[0]
        steps = [started(agent), replace(step(agent, E.HEALTH_OK), sources=(S.WARMING,))]
        done = await store.step(agent.crew, steps)
        assert [r.agent.state for r in done.results if r.agent] == [S.WARMING, S.READY]
        assert await moves_of(store, agent.crew) == ["requested", "instance_started", "health_ok"]

    async def test_a_replacement_is_the_next_generation(self, store: Store) -> None:
        agent = await ready_agent(store)
        sick = (await advance(store, [agent], E.HEALTH_FAILED))[0]
        assert (await store.get_crew(agent.crew)).state is CrewState.DEGRADED
        assert sick.instance == agent.instance
        next_ = (await advance(store, [sick], E.REPLACE))[0]
        assert (next_.state, next_.generation, next_.replacements) == (S.PROVISIONING, 2, 1)
        assert next_.instance is not None
        assert next_.instance.id == f"{agent.uid}-g2"
        assert [i.id for i in await store.dying_instances(9)] == [f"{agent.uid}-g1"]
        assert next_ == await store.get_agent(agent.id)

    async def test_a_replacement_takes_a_warm_instance(self, store: Store) -> None:
        agent = await ready_agent(store)
        warm = await fill_pool(store, 1)
        sick = (await advance(store, [agent], E.HEALTH_FAILED))[0]
        next_ = (await advance(store, [sick], E.REPLACE))[0]
        assert (next_.state, next_.generation, next_.warm) == (S.WARMING, 2, True)
        assert next_.instance is not None
        assert next_.instance.id == warm[0]
        assert next_ == await store.get_agent(agent.id)
        assert (await moves_of(store, agent.crew))[-2:] == ["replace", "instance_started"]

    async def test_replacements_are_counted_and_forgiven_by_a_retry(self, store: Store) -> None:
        agent = await ready_agent(store)
        for count in (1, 2, 3):
            sick = (await advance(store, [agent], E.HEALTH_FAILED))[0]
            agent = (await advance(store, [sick], E.REPLACE))[0]
            assert agent.replacements == count
            agent = (await advance(store, [agent], E.INSTANCE_STARTED))[0]
        failed = (await advance(store, [agent], E.GAVE_UP))[0]
        assert failed.instance is None
        again = await store.retry_agent(agent.id, None, ALICE)
        assert (again.state, again.generation, again.replacements) == (S.PROVISIONING, 5, 0)
        with pytest.raises(Refused):
            await store.retry_agent(agent.id, None, ALICE)

    async def test_backoff_is_kept_in_the_database_s_time(self, store: Store) -> None:
        agent = await ready_agent(store)
        done = await store.step(agent.crew, [step(agent, E.HEALTH_FAILED, not_before_s=5.0)])
        row = done.results[0].agent
        assert row is not None
        assert row.not_before == row.updated_at + timedelta(seconds=5)

    async def test_hibernation_and_waking(self, store: Store) -> None:
        agent = await ready_agent(store)
        asleep = (await advance(store, [agent], E.TTL_EXPIRED))[0]
        assert asleep.instance is None
        assert (await store.get_crew(agent.crew)).state is CrewState.READY
        awake = (await advance(store, [asleep], E.WAKE))[0]
        assert (awake.state, awake.generation) == (S.WARMING, 2)
        assert awake.instance is not None

    async def test_a_crew_with_min_ready_stays_ready(self, store: Store) -> None:
        crew = await ready_crew(store, agents=3, min_ready=2)
        first, second, _ = crew.agents
        await advance(store, [first], E.HEALTH_FAILED)
        assert (await store.get_crew(crew.id)).state is CrewState.READY
        await advance(store, [second], E.HEALTH_FAILED)
        assert (await store.get_crew(crew.id)).state is CrewState.DEGRADED

    async def test_disband_drains_all_and_is_idempotent(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        gone = await store.disband(crew.id, None, ALICE, failed=False, reason="Done", message="", drain_s=9)
        assert (gone.state, gone.wish_gone, gone.reason) == (CrewState.DRAINING, True, "Done")
        assert {agent.state for agent in gone.agents} == {S.DRAINING}
        assert gone.drain_until == gone.agents[0].drain_until
        assert gone.agents[0].instance is not None
        again = await store.disband(crew.id, None, ALICE, failed=True, reason="x", message="", drain_s=1)
        assert again == gone
        await advance(store, gone.agents, E.DRAINED)
        ended = await store.get_crew(crew.id)
        assert (ended.state, ended.reason) == (CrewState.DISBANDED, "Done")
        assert len(await store.dying_instances(9)) == 2

    async def test_stop_ends_one_agent_or_a_solo_crew(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        stopped = await store.stop_agent(crew.agents[0].id, None, ALICE, drain_s=0)
        assert stopped.state is S.DRAINING
        assert await store.stop_agent(stopped.id, None, ALICE, drain_s=5) == stopped
        assert not (await store.get_crew(crew.id)).wish_gone
        solo = await ready_agent(store, solo=True)
        await store.stop_agent(solo.id, None, ALICE, drain_s=0)
        assert (await store.get_crew(solo.crew)).wish_gone

    async def test_an_agent_stops_from_every_state(self, store: Store) -> None:
        ways = ([], [E.INSTANCE_STARTED], [E.INSTANCE_STARTED, E.HEALTH_FAILED], [E.GAVE_UP])
        for way in ways:
            agent = (await assemble(store)).agents[0]
            for event in way:
                agent = (await advance(store, [agent], event))[0]
            stopped = await store.stop_agent(agent.id, None, ALICE, drain_s=0)
            assert stopped.state is S.DRAINING
            assert (await advance(store, [stopped], E.DRAINED))[0].state is S.STOPPED

    async def test_words_that_the_database_cannot_keep_are_mended(self, store: Store) -> None:
        agent = await ready_agent(store)
        done = await store.step(agent.crew, [step(agent, E.HEALTH_FAILED, message="bad\x00byte")])
        assert done.results[0].agent is not None
        assert (await store.get_agent(agent.id)).message == "bad\N{REPLACEMENT CHARACTER}byte"


class LeaseSuite:
    """One holder at a time, for a time."""

    async def test_acquire_renew_release(self, store: Store) -> None:
        agent = await ready_agent(store)
        busy = await store.acquire(agent.id, None, ALICE, holder="alice", lease_s=10)
        assert (busy.state, busy.lease_holder) == (S.BUSY, "alice")
        renewed = await store.renew(agent.id, 1, None, ALICE, holder="alice", lease_s=60)
        assert busy.lease_until is not None
        assert renewed.lease_until is not None
        assert renewed.lease_until > busy.lease_until + timedelta(seconds=40)
        assert renewed == await store.get_agent(agent.id)
        free = await store.release(agent.id, 1, None, ALICE, holder="alice")
        assert (free.state, free.lease_holder, free.lease_until) == (S.READY, "", None)
        assert await store.release(agent.id, 1, None, ALICE, holder="alice") == free

    async def test_refusals_name_their_reason(self, store: Store) -> None:
        agent = await ready_agent(store)
        await store.acquire(agent.id, None, ALICE, holder="alice", lease_s=10)
        with pytest.raises(Refused) as held:
            await store.acquire(agent.id, None, ALICE, holder="bob", lease_s=10)
        assert (reason_of(held), held.value.metadata) == ("LEASE_HELD", {"holder": "alice"})
        with pytest.raises(Refused) as stranger:
            await store.release(agent.id, 1, None, ALICE, holder="bob")
        assert reason_of(stranger) == "LEASE_HELD"
        with pytest.raises(Refused) as stale:
            await store.renew(agent.id, 7, None, ALICE, holder="alice", lease_s=10)
        assert (reason_of(stale), stale.value.metadata) == ("STALE_GENERATION", {"generation": "1"})
        await advance(store, [await store.get_agent(agent.id)], E.HEALTH_FAILED)
        with pytest.raises(Refused) as wrong:
            await store.acquire(agent.id, None, ALICE, holder="bob", lease_s=10)
        assert (reason_of(wrong), wrong.value.metadata) == ("WRONG_STATE", {"state": "UNHEALTHY"})

    async def test_a_lease_that_ran_out_is_taken_over(self, store: Store) -> None:
        agent = await ready_agent(store)
        await store.acquire(agent.id, None, ALICE, holder="dead", lease_s=0)
        busy = await store.acquire(agent.id, None, ALICE, holder="bob", lease_s=10)
        assert busy.lease_holder == "bob"
        assert (await moves_of(store, agent.crew))[-2:] == ["task_completed", "task_assigned"]

    async def test_a_draining_agent_keeps_its_holder_to_the_end(self, store: Store) -> None:
        agent = await ready_agent(store)
        await store.acquire(agent.id, None, ALICE, holder="alice", lease_s=10)
        draining = await store.stop_agent(agent.id, None, ALICE, drain_s=60)
        assert (draining.state, draining.lease_holder) == (S.DRAINING, "alice")
        freed = await store.release(agent.id, 1, None, ALICE, holder="alice")
        assert (freed.state, freed.lease_holder) == (S.DRAINING, "")
        assert freed == await store.get_agent(agent.id)


class InstanceSuite:
    """Instances and the pool: what is wished, what exists, what must go."""

    async def test_a_released_instance_leaves_its_agent_and_is_forgotten(self, store: Store) -> None:
        agent = await ready_agent(store)
        assert agent.instance is not None
        own = agent.instance.id
        await store.release_instance(own)
        await store.release_instance(own)
        await store.release_instance("unknown")
        assert (await store.get_agent(agent.id)).instance is None
        assert [i.id for i in await store.dying_instances(9)] == [own]
        assert [i.state for i in await store.list_instances()] == [InstanceState.DYING]
        await store.forget_instance(own)
        assert not await store.list_instances()

    async def test_health_of_an_older_generation_is_ignored(self, store: Store) -> None:
        agent = await ready_agent(store)
        seen = await store.now()
        assert await store.record_health([HealthFact(agent.id, 1, 2, seen)]) == 0
        row = await store.get_agent(agent.id)
        assert (row.misses, row.heartbeat_at) == (2, seen)
        assert await store.record_health([HealthFact(agent.id, 1, 3, None)]) == 0
        assert (await store.get_agent(agent.id)).heartbeat_at == seen
        sick = (await advance(store, [agent], E.HEALTH_FAILED))[0]
        await advance(store, [sick], E.REPLACE)
        facts = [HealthFact(agent.id, 1, 9, seen), HealthFact("gone", 1, 0, seen)]
        assert await store.record_health(facts) == 2
        fresh = await store.get_agent(agent.id)
        assert (fresh.misses, fresh.heartbeat_at) == (0, None)

    async def test_a_pool_is_filled_to_its_target_and_trimmed(self, store: Store) -> None:
        assert not await store.plan_refill("python", 5, OWNER)
        await fill_pool(store, 3)
        assert not await store.plan_refill("python", 5, OWNER)
        pool = await store.set_pool("python", 1, None, ALICE)
        assert (pool.target, pool.ready) == (1, 1)
        assert len(await store.dying_instances(9)) == 2

    async def test_an_unwished_start_is_refused(self, store: Store) -> None:
        await store.set_pool("python", 1, None, ALICE)
        intent = (await store.plan_refill("python", 1, OWNER))[0]
        await store.release_instance(intent.id)
        assert not await store.pool_started(fact(intent.id))
        assert not await store.pool_started(fact("unknown"))

    async def test_what_a_dead_maker_began_is_made_anew_at_once(self, store: Store) -> None:
        await store.set_pool("python", 3, None, ALICE)
        done, begun = await store.plan_refill("python", 2, OWNER)
        (others,) = await store.plan_refill("python", 1, "another")
        await store.pool_started(fact(done.id))
        await store.abandon_refill(OWNER)
        assert [row.id for row in await store.dying_instances(9)] == [begun.id]
        assert not await store.pool_started(fact(begun.id)), "it is not wished any more"
        assert await store.pool_started(fact(others.id))
        assert len(await store.plan_refill("python", 5, OWNER)) == 1

    async def test_trouble_is_told_and_cleared(self, store: Store) -> None:
        await store.set_pool("python", 1, None, ALICE)
        await store.pool_degraded("python", "ImageMissing", "no such image")
        first = (await store.get_pools())[0]
        await store.pool_degraded("python", "ImageMissing", "still")
        second = (await store.get_pools())[0]
        assert (second.degraded_message, second.degraded_since) == ("still", first.degraded_since)
        await store.pool_degraded("python", "", "")
        assert (await store.get_pools())[0].degraded_since is None

    async def test_a_claim_prefers_the_oldest_of_its_base(self, store: Store) -> None:
        await fill_pool(store, 1, base="other")
        mine = await fill_pool(store, 2)
        agent = (await assemble(store)).agents[0]
        assert agent.instance is not None
        assert agent.instance.id == mine[0]


class EventSuite:
    """The log: in order, whole, from any place, until it is dropped with age."""

    async def test_appended_events_come_back_whole(self, store: Store) -> None:
        crew = await assemble(store)
        head = crew.last_sequence
        step_ = events_pb2.TaskStep(task="t1", phase=events_pb2.TASK_PHASE_ASSIGNED)
        event = events_pb2.Event(type=events_pb2.EVENT_TYPE_TASK, actor="a", agent="b", task=step_, crew="no")
        assert await store.append(crew.id, [event, event]) == head + 2
        back = await store.read_events(crew.id, head, 1)
        decoded = back[0].decode()
        assert (decoded.crew, decoded.sequence, decoded.task) == (crew.id, head + 1, step_)
        assert (back[0].type, back[0].agent) == (events_pb2.EVENT_TYPE_TASK, "b")
        assert await store.event_bounds(crew.id) == (1, head + 2)

    async def test_all_events_are_read_once_from_a_mark(self, store: Store) -> None:
        first = await assemble(store)
        mark = await store.latest_mark()
        assert await store.read_all_events(mark, 10) == ([], mark)
        second = await assemble(store, agents=2)
        seen = []
        while True:
            batch, mark = await store.read_all_events(mark, 2)
            if not batch:
                break
            seen += [(event.crew, event.sequence) for event in batch]
        assert seen == [(second.id, number) for number in range(1, second.last_sequence + 1)]
        everything, _ = await store.read_all_events("", 100)
        assert len(everything) == first.last_sequence + second.last_sequence
        with pytest.raises(Invalid):
            await store.read_all_events("nonsense", 1)

    async def test_old_events_are_dropped_from_the_front(self, store: Store) -> None:
        crew = await ready_crew(store, agents=3)
        head = crew.last_sequence
        assert await store.compact_events(keep_s=3600, keep_per_crew=4) == head - 4
        assert await store.event_bounds(crew.id) == (head - 3, head)
        assert [e.sequence for e in await store.read_events(crew.id, 0, 9)] == list(range(head - 3, head + 1))
        assert await store.compact_events(keep_s=-1, keep_per_crew=4) == 4
        assert await store.event_bounds(crew.id) == (head + 1, head)
        assert await store.append(crew.id, [events_pb2.Event()]) == head + 1

    async def test_an_ended_crew_goes_whole_after_its_retention(self, store: Store) -> None:
        live, ended = await ready_crew(store), await ended_crew(store)
        await store.compact_events(keep_s=3600, keep_per_crew=1_000_000)
        assert (await store.get_crew(ended.id)).state is CrewState.DISBANDED
        await store.compact_events(keep_s=-1, keep_per_crew=1_000_000)
        with pytest.raises(NotFound):
            await store.get_crew(ended.id)
        with pytest.raises(NotFound):
            await store.get_agent(ended.agents[0].id)
        assert (await store.get_agent(live.agents[0].id)).state is AgentState.READY


class SignalSuite:
    """Broadcasts, receipts, tasks and contexts: each fact once."""

    async def test_each_target_has_one_final_receipt(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        payload = struct_pb2.Struct()
        payload.update({"goal": "moon"})
        key = request("Broadcast")
        options = {
            "signal": "MISSION_START",
            "payload": payload.SerializeToString(),
            "agents": [(agent.id, agent.name) for agent in crew.agents],
            "ttl_s": 60.0,
        }
        opened, joined = await store.open_broadcast(crew.id, key, ALICE, **options)  # type: ignore[arg-type]
        again, rejoined = await store.open_broadcast(crew.id, key, ALICE, **options)  # type: ignore[arg-type]
        assert (joined, rejoined, again) == (False, True, opened)
        (pending,) = await store.pending_receipts(crew.id)
        assert (pending[0], len(pending[1])) == (opened, 2)
        first, second = crew.agents
        acked = ReceiptRow(opened.id, second.id, second.name, 1, "ACKED", 0, 0.5)
        error = status_pb2.Status(code=3, message="no").SerializeToString()
        rejected = ReceiptRow(opened.id, first.id, first.name, 1, "REJECTED", 0, 0.7, error)
        final = await store.record_receipts(opened.id, [acked, replace(acked, stage="EXPIRED")])
        assert [(r.agent, r.stage, r.ordinal) for r in final] == [(second.id, "ACKED", 1)]
        final = await store.record_receipts(opened.id, [acked, rejected])
        assert [(r.agent, r.stage, r.ordinal) for r in final] == [(first.id, "REJECTED", 2)]
        assert [r.ordinal for r in await store.read_receipts(opened.id, 0)] == [1, 2]
        assert [r.error for r in await store.read_receipts(opened.id, 1)] == [error]
        assert (await store.get_broadcast(opened.id)).done_at is not None
        assert not await store.pending_receipts(crew.id)
        events = [e.decode() for e in await store.read_events(crew.id, crew.last_sequence, 9)]
        assert events[0].signal.payload == payload
        assert [e.receipt.agent for e in events[1:]] == [second.id, first.id]
        assert events[2].receipt.error.message == "no"

    async def test_a_broadcast_to_nobody_is_done(self, store: Store) -> None:
        crew = await assemble(store)
        opened, _ = await store.open_broadcast(
            crew.id, request(), ALICE, signal="X", payload=b"", agents=[], ttl_s=1
        )
        assert opened.done_at is not None

    async def test_a_crew_on_its_way_out_gets_no_new_signal(self, store: Store) -> None:
        crew = await ready_crew(store)
        key = request("Broadcast")
        options = {"signal": "X", "payload": b"", "agents": [], "ttl_s": 1.0}
        opened, _ = await store.open_broadcast(crew.id, key, ALICE, **options)  # type: ignore[arg-type]
        await store.disband(crew.id, None, ALICE, failed=False, reason="R", message="m", drain_s=0)
        with pytest.raises(Refused) as caught:
            await store.open_broadcast(crew.id, request(), ALICE, **options)  # type: ignore[arg-type]
        assert caught.value.metadata["state"] == "DRAINING"
        again, joined = await store.open_broadcast(crew.id, key, ALICE, **options)  # type: ignore[arg-type]
        assert (again, joined) == (opened, True), "who asked before is answered"

    async def test_a_task_holds_its_agent_until_it_ends_once(self, store: Store) -> None:
        crew = await ready_crew(store, agents=2)
        ids = [agent.id for agent in crew.agents]
        key = request("Task")
        options = {"input": b"i", "timeout_s": 60.0, "lease_s": 10.0}
        task, joined = await store.open_task(crew.id, ids, key, ALICE, **options)  # type: ignore[arg-type]
        again, rejoined = await store.open_task(crew.id, ids, key, ALICE, **options)  # type: ignore[arg-type]
        assert (task.agent, joined, again, rejoined) == (ids[0], False, task, True)
        other, _ = await store.open_task(crew.id, ids, request(), ALICE, **options)  # type: ignore[arg-type]
        assert other.agent == ids[1]
        with pytest.raises(Refused) as caught:
            await store.open_task(crew.id, ids, request(), ALICE, **options)  # type: ignore[arg-type]
        assert reason_of(caught) == "LEASE_HELD"
        assert [t.id for t in await store.open_tasks(crew.id)] == [task.id, other.id]
        assert await store.renew_task(task.id, lease_s=60)
        result = agent_service_pb2.TaskResult(status=status_pb2.Status(code=2, message="boom"))
        closed = await store.close_task(task.id, phase="FAILED", result=result.SerializeToString())
        assert closed.ended_at is not None
        assert (await store.get_agent(ids[0])).state is S.READY
        assert await store.close_task(task.id, phase="COMPLETED", result=b"") == closed
        assert not await store.renew_task(task.id, lease_s=60)
        events = [e.decode() for e in await store.read_events(crew.id, 0, 99)]
        phases = [e.task for e in events if e.type == events_pb2.EVENT_TYPE_TASK and e.task.task == task.id]
        assert [p.phase for p in phases] == [1, 3]
        assert phases[1].error.message == "boom"

    async def test_a_task_of_a_dead_generation_frees_nobody(self, store: Store) -> None:
        agent = await ready_agent(store)
        task, _ = await store.open_task(
            agent.crew, [agent.id], request(), ALICE, input=b"", timeout_s=9, lease_s=9
        )
        sick = (await advance(store, [await store.get_agent(agent.id)], E.HEALTH_FAILED))[0]
        assert sick.lease_holder == ""
        assert not await store.renew_task(task.id, lease_s=9)
        await store.close_task(task.id, phase="FAILED", result=b"")
        assert (await store.get_agent(agent.id)).state is S.UNHEALTHY

    async def test_no_task_for_agents_that_are_not_ready(self, store: Store) -> None:
        crew = await assemble(store)
        with pytest.raises(Refused) as caught:
            await store.open_task(
                crew.id, [crew.agents[0].id], request(), ALICE, input=b"", timeout_s=9, lease_s=9
            )
        assert (reason_of(caught), caught.value.metadata) == ("WRONG_STATE", {"state": "PROVISIONING"})

    async def test_a_context_is_mirrored_once_and_only_forward(self, store: Store) -> None:
        crew = await assemble(store)
        rows = [ContextRow("goal", json.dumps("a\u0000b"), 1, "x"), ContextRow("goal", "2", 2, "y")]
        assert list(await store.mirror_context(crew.id, rows, "5-1")) == rows
        assert not await store.mirror_context(crew.id, rows, "4-9")
        assert (await store.get_crew(crew.id)).context_cursor == "5-1"
        assert list(await store.read_context(crew.id)) == [rows[1]]
        removed = ContextRow("goal", None, 3, "x")
        assert list(await store.mirror_context(crew.id, [removed], "10-0")) == [removed]
        assert not await store.read_context(crew.id)
        assert not await store.mirror_context(crew.id, [rows[1]], "10-0")
        events = [e.decode() for e in await store.read_events(crew.id, crew.last_sequence, 9)]
        assert [e.context.version for e in events] == [1, 2, 3]
        assert [e.context.HasField("value") for e in events] == [True, True, False]


class ProfileSuite:
    """Profiles by name, versions by digest, and the small things."""

    async def test_profiles_are_versioned_by_compare_and_swap(self, store: Store) -> None:
        made = await store.create_profile(profile(), request())
        assert made.version == 1
        with pytest.raises(AlreadyExists) as taken:
            await store.create_profile(profile(), request())
        assert taken.value.metadata == {"name": "coder"}
        key = request("Update")
        second = await store.update_profile(profile(digest="sha256:2"), 1, key)
        assert (second.version, second.digest) == (2, "sha256:2")
        assert await store.update_profile(profile(digest="sha256:2"), 1, key) == second
        with pytest.raises(Stale):
            await store.update_profile(profile(digest="sha256:3"), 1, None)
        with pytest.raises(NotFound):
            await store.update_profile(profile("none"), 1, None)
        assert await store.get_profile("coder") == second

    async def test_built_in_profiles_change_only_with_their_digest(self, store: Store) -> None:
        for digest in ("sha256:1", "sha256:1", "sha256:2"):
            await store.ensure_profile(profile("python", digest))
        assert (await store.get_profile("python")).version == 2
        await store.ensure_profile(profile("admin"))
        assert [p.name for p in await store.list_profiles(Page(1))] == ["admin", "python"]
        assert [p.name for p in await store.list_profiles(Page(5, "admin"))] == ["python"]
        assert list(await store.get_profiles(["admin", "none"])) == ["admin"]

    async def test_requests_keep_the_first_reference(self, store: Store) -> None:
        key = request()
        assert await store.find_request(key) is None
        assert await store.save_request(key, "one") == "one"
        assert await store.save_request(key, "two") == "one"
        assert await store.find_request(key) == "one"
        with pytest.raises(Invalid):
            await store.find_request(replace(key, request_hash=b"2"))

    async def test_a_secret_is_made_once(self, store: Store) -> None:
        first = await store.secret("bus")
        assert len(first) == 32
        assert await store.secret("bus") == first
        assert await store.secret("tokens") != first

    async def test_audit_rows_are_read_newest_first(self, store: Store) -> None:
        await store.audit([AuditRow(ALICE, "M", f"r{n}", "peer", "OK", "") for n in range(3)])
        rows = await store.list_audit(Page(1))
        assert [row.resource for row in rows] == ["r2", "r1"]
        rest = await store.list_audit(Page(5, str(rows[0].id)))
        assert [row.resource for row in rest] == ["r1", "r0"]
        assert rows[0].time is not None


class StoreSuite(CrewSuite, StepSuite, LeaseSuite, InstanceSuite, EventSuite, SignalSuite, ProfileSuite):
    """All of it."""
