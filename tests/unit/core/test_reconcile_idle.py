"""When an agent may hibernate, and how one that was woken comes back: decided from rows and a clock alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import AgentRow, CrewRow, InstanceRow, InstanceState
from factory_server.core.reconcile import HEARD_S, Job, decide, idle_until, rests_at
from hyperfactory.v1 import crew_service_pb2, types_pb2

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TTL = timedelta(seconds=60)
TICK = timedelta(microseconds=1)


def agent(**changes: object) -> AgentRow:
    """A READY agent with a ttl that moved now."""
    spec = types_pb2.ProfileSpec()
    spec.idle_ttl.FromTimedelta(TTL)
    row = AgentRow(
        id="a1",
        uid="u1",
        crew="c1",
        name="dormouse",
        group="dormouse",
        replicas=1,
        profile="sleepy",
        profile_digest="",
        spec=spec,
        scope="coder",
        labels={},
        state=AgentState.READY,
        generation=1,
        warm=False,
        reason="",
        message="",
        created_at=NOW,
        updated_at=NOW,
        instance=InstanceRow("u1-g1", "python", InstanceState.OWNED, "a1", 1),
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def crew(state: CrewState = CrewState.READY) -> CrewRow:
    """A crew."""
    manifest = crew_service_pb2.CrewManifest()
    return CrewRow("c1", "u", "nap", manifest, state, False, False, False, 1, "", "", NOW, NOW)


@pytest.mark.parametrize(
    ("waited", "job"), [(TTL - TICK, Job.ATTEND), (TTL, Job.HIBERNATE), (TTL + TICK, Job.HIBERNATE)]
)
def test_at_the_deadline_it_has_expired(waited: timedelta, job: Job) -> None:
    assert decide(agent(), crew(), NOW + waited).job is job
    later = rests_at(agent(), NOW + waited)
    assert later == (NOW + TTL if job is Job.ATTEND else None)


def test_without_a_ttl_it_never_sleeps() -> None:
    awake = agent(spec=types_pb2.ProfileSpec())
    assert decide(awake, crew(), NOW + 1000 * TTL).job is Job.ATTEND
    assert idle_until(awake) is None


@pytest.mark.parametrize("state", [state for state in AgentState if state is not AgentState.READY])
def test_only_who_is_ready_sleeps(state: AgentState) -> None:
    row = agent(state=state, lease_until=NOW + 9 * TTL, lease_holder="task/t")
    assert decide(row, crew(), NOW + 2 * TTL).job is not Job.HIBERNATE
    assert rests_at(row, NOW) is None


@pytest.mark.parametrize("state", CrewState)
def test_members_of_a_crew_that_comes_or_goes_stay_awake(state: CrewState) -> None:
    rests = decide(agent(), crew(state), NOW + TTL).job is Job.HIBERNATE
    assert rests == (state in (CrewState.READY, CrewState.DEGRADED))


def test_a_woken_agent_gets_the_instance_it_waits_for() -> None:
    wished = InstanceRow("u1-g2", "python", InstanceState.STARTING, "a1", 2)
    woken = agent(state=AgentState.WARMING, generation=2, instance=wished)
    assert decide(woken, crew(), NOW).job is Job.CREATE
    made = replace(wished, state=InstanceState.OWNED)
    assert decide(replace(woken, instance=made), crew(), NOW).job is Job.ASSUME
    assert decide(replace(woken, instance=None), crew(), NOW).job is Job.ASSUME


CHILL = timedelta(seconds=20)


def chilly(**changes: object) -> AgentRow:
    """One that is frozen before its ttl is over."""
    row = agent()
    row.spec.freeze_after.FromTimedelta(CHILL)
    return replace(row, **changes)  # type: ignore[arg-type]


def test_it_is_frozen_first_and_stored_away_when_its_ttl_is_over() -> None:
    assert decide(chilly(), crew(), NOW + CHILL - TICK).job is Job.ATTEND
    assert rests_at(chilly(), NOW) == NOW + CHILL
    assert decide(chilly(), crew(), NOW + CHILL).job is Job.FREEZE
    cold = chilly(frozen_at=NOW + CHILL)
    assert rests_at(cold, NOW + CHILL) == NOW + TTL
    assert decide(cold, crew(), NOW + TTL - TICK).job is Job.HOLD
    assert decide(cold, crew(), NOW + TTL).job is Job.HIBERNATE


def test_its_processes_stop_when_everybody_has_heard_and_go_on_when_anybody_wants() -> None:
    cold = chilly(frozen_at=NOW)
    assert decide(cold, crew(), NOW).due == NOW + timedelta(seconds=HEARD_S)
    wanted = replace(cold, thaw_wanted=True)
    assert decide(wanted, crew(), NOW + TTL).job is Job.THAW
    assert decide(replace(wanted, state=AgentState.DRAINING), crew(), NOW).job is Job.DRAIN
    assert (cold.serves, cold.sleeps, chilly().serves, chilly().sleeps) == (False, True, True, False)


@pytest.mark.parametrize("state", CrewState)
def test_members_of_a_crew_that_comes_or_goes_are_not_frozen(state: CrewState) -> None:
    freezes = decide(chilly(), crew(state), NOW + CHILL).job is Job.FREEZE
    assert freezes == (state in (CrewState.READY, CrewState.DEGRADED))
