"""The reconciler's judgement: for every state, at every boundary, the same answer however often it is asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from factory_server.core import reconcile
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import AgentRow, CrewRow
from factory_server.core.reconcile import Decision, Job, decide
from hyperfactory.v1 import crew_service_pb2, types_pb2

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
S = AgentState
TICK = timedelta(microseconds=1)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def agent(state: AgentState, **fields: object) -> AgentRow:
    made = AgentRow(
        id="a1",
        uid="u1",
        crew="c1",
        name="w",
        group="w",
        replicas=1,
        profile="generic",
        profile_digest="",
        spec=types_pb2.ProfileSpec(),
        scope="coder",
        labels={},
        state=state,
        generation=1,
        warm=False,
        reason="",
        message="",
        created_at=NOW,
        updated_at=NOW,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def crew(state: CrewState = CrewState.READY, policy: int = 0, **fields: object) -> CrewRow:
    manifest = crew_service_pb2.CrewManifest()
    manifest.policy.on_member_failure = policy  # type: ignore[assignment]
    made = CrewRow("c1", "k1", "demo", manifest, state, False, False, False, 1, "", "", NOW, NOW)
    return replace(made, **fields)  # type: ignore[arg-type]


def job(row: AgentRow, of: CrewRow | None = None, now: datetime = NOW) -> Job:
    return decide(row, of or crew(), now).job


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (S.PROVISIONING, Job.CREATE),
        (S.WARMING, Job.ASSUME),
        (S.READY, Job.ATTEND),
        (S.BUSY, Job.ATTEND),
        (S.HIBERNATING, Job.NONE),
        (S.UNHEALTHY, Job.REPLACE),
        (S.DRAINING, Job.DRAIN),
        (S.STOPPED, Job.NONE),
        (S.FAILED, Job.NONE),
    ],
)
def test_each_state_has_its_job(state: AgentState, expected: Job):
    assert job(agent(state)) is expected


def test_every_state_is_answered():
    assert {type(decide(agent(state), crew(), NOW)) for state in AgentState} == {Decision}


def test_a_lease_has_run_out_at_its_very_end():
    held = agent(S.BUSY, lease_until=NOW)
    assert job(held) is Job.RELEASE
    assert job(held, now=NOW - TICK) is Job.ATTEND
    assert job(agent(S.BUSY)) is Job.ATTEND, "a lock without an end is no lease that ran out"


@pytest.mark.parametrize("state", [S.PROVISIONING, S.WARMING])
def test_an_assembly_gives_up_at_the_ready_timeout(state: AgentState):
    assembling = crew(CrewState.ASSEMBLING)
    late = agent(state, updated_at=ago(reconcile.READY_TIMEOUT_S))
    verdict = decide(late, assembling, NOW)
    assert (verdict.job, verdict.reason) == (Job.GIVE_UP, "ReadyTimeout")
    assert job(late, assembling, NOW - TICK) is not Job.GIVE_UP
    assert job(late) is not Job.GIVE_UP, "a live crew's member is tried for as long as it takes"


def test_the_ready_timeout_is_the_profiles():
    slow = agent(S.PROVISIONING, updated_at=ago(60))
    slow.spec.ready_timeout.seconds = 61
    assert job(slow, crew(CrewState.ASSEMBLING)) is Job.CREATE
    slow.spec.ready_timeout.seconds = 60
    assert job(slow, crew(CrewState.ASSEMBLING)) is Job.GIVE_UP


def test_a_timeout_tells_the_last_trouble():
    late = agent(S.PROVISIONING, updated_at=ago(31), message="no room")
    assert decide(late, crew(CrewState.ASSEMBLING), NOW).message == "no room"


def test_creation_waits_for_its_backoff():
    later = NOW + timedelta(seconds=1)
    assert decide(agent(S.PROVISIONING, not_before=later), crew(), NOW).due == later


def test_members_are_left_where_the_policy_says_so():
    left = decide(agent(S.UNHEALTHY), crew(policy=crew_service_pb2.MEMBER_FAILURE_LEAVE), NOW)
    assert (left.job, left.reason) == (Job.GIVE_UP, "LeftByPolicy")


def test_a_crew_ends_with_a_member_where_the_policy_says_so_but_not_while_it_is_assembled():
    policy = crew_service_pb2.MEMBER_FAILURE_DISBAND
    assert job(agent(S.UNHEALTHY), crew(policy=policy)) is Job.DISBAND
    assert job(agent(S.UNHEALTHY), crew(CrewState.ASSEMBLING, policy)) is Job.REPLACE


def replaced(times: int, **fields: object) -> AgentRow:
    return agent(S.UNHEALTHY, replacements=times, **{"replaced_since": ago(1), **fields})


def test_the_first_replacement_is_immediate_and_later_ones_back_off():
    pauses = [decide(replaced(n), crew(), NOW).due - NOW for n in range(5)]  # type: ignore[operator]
    assert [p.total_seconds() for p in pauses] == [0.0, 0.2, 0.4, 0.8, 1.6]


def test_backoff_stays_below_its_limit():
    assert [reconcile.backoff_s(n) for n in (8, 9, 1000)] == [25.6, 30.0, 30.0]
    assert [reconcile.create_backoff_s(n) for n in (1, 2, 9, 1000)] == [0.2, 0.4, 30.0, 30.0]


def test_the_budget_is_spent_after_so_many_replacements_in_the_window():
    assert job(replaced(4)) is Job.REPLACE
    spent = decide(replaced(5, message="it died"), crew(), NOW)
    assert (spent.job, spent.reason) == (Job.GIVE_UP, "BudgetSpent")
    assert "it died" in spent.message


def test_the_budget_is_the_profiles():
    eager = replaced(5)
    eager.spec.max_replacements = 6
    assert job(eager) is Job.REPLACE
    eager.spec.max_replacements = 1
    assert job(eager) is Job.GIVE_UP


def test_the_window_is_over_at_its_very_end():
    window = reconcile.BUDGET_WINDOW_S
    assert job(replaced(5, replaced_since=ago(window))) is Job.REPLACE
    assert job(replaced(5, replaced_since=ago(window) + TICK)) is Job.GIVE_UP
    assert decide(replaced(5, replaced_since=ago(window)), crew(), NOW).due == NOW, "and so is its backoff"


def test_a_crew_has_expired_at_its_very_end_unless_its_end_is_wished_already():
    assert reconcile.crew_expired(crew(expires_at=NOW), NOW)
    assert not reconcile.crew_expired(crew(expires_at=NOW), NOW - TICK)
    assert not reconcile.crew_expired(crew(expires_at=NOW, wish_gone=True), NOW)
    assert not reconcile.crew_expired(crew(), NOW)
