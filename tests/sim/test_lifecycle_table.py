"""The transition table as a whole: nothing unreachable, nothing unused, no agent that cannot be stopped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from factory_server.core.lifecycle import (
    LIVE,
    NEW_GENERATION,
    TABLE,
    TERMINAL,
    AgentEvent,
    AgentState,
    CrewState,
    advance,
    crew_state,
)
from hyperfactory.v1 import types_pb2

EVENTS = st.lists(st.sampled_from(AgentEvent), max_size=40)


def reachable(start: AgentState | None) -> set[AgentState]:
    """Every state that some events lead to."""
    found: set[AgentState] = set()
    frontier = [start]
    while frontier:
        source = frontier.pop()
        fresh = {row.target for row in TABLE if row.source is source} - found
        found |= fresh
        frontier += fresh
    return found


def test_every_state_is_reachable() -> None:
    assert reachable(None) == set(AgentState)


def test_from_everywhere_an_agent_can_be_stopped() -> None:
    stuck = [s for s in AgentState if s is not AgentState.STOPPED and AgentState.STOPPED not in reachable(s)]
    assert not stuck


def test_stopped_is_the_end() -> None:
    assert not reachable(AgentState.STOPPED)


def test_every_live_state_can_be_shut_down_in_one_step() -> None:
    assert {s for s in LIVE if advance(s, AgentEvent.SHUTDOWN) is AgentState.DRAINING} == set(LIVE)
    assert set(LIVE) | set(TERMINAL) | {AgentState.DRAINING} == set(AgentState)


def test_no_wake_retry_or_replacement_brings_a_stopped_agent_back() -> None:
    for state in (AgentState.DRAINING, AgentState.STOPPED):
        assert {row.target for row in TABLE if row.source is state} <= {AgentState.STOPPED}


def test_no_event_is_unused_and_no_step_is_ambiguous() -> None:
    assert {row.event for row in TABLE} == set(AgentEvent)
    steps = [(row.source, row.event) for row in TABLE]
    assert len(steps) == len(set(steps))
    assert all(row.raised_by for row in TABLE)


def test_a_new_agent_begins_in_one_way_only() -> None:
    assert [row.event for row in TABLE if row.source is None] == [AgentEvent.REQUESTED]
    assert all(row.source is None for row in TABLE if row.event is AgentEvent.REQUESTED)


def test_an_event_always_leads_to_the_same_state() -> None:
    """A log of events can be read without the states."""
    for event in AgentEvent:
        assert len({row.target for row in TABLE if row.event is event}) == 1


def test_each_way_back_to_an_instance_raises_the_generation() -> None:
    """Whatever was there before is fenced: only the first instance begins without a new generation."""
    without_instance = {AgentState.HIBERNATING, AgentState.UNHEALTHY, AgentState.FAILED}
    back = {
        row.event
        for row in TABLE
        if row.source in without_instance and row.target in (AgentState.PROVISIONING, AgentState.WARMING)
    }
    assert back == NEW_GENERATION


@given(events=EVENTS)
def test_any_events_walk_along_the_table_and_never_leave_it(events: list[AgentEvent]) -> None:
    state: AgentState | None = None
    for event in events:
        after = advance(state, event)
        known = [row.target for row in TABLE if (row.source, row.event) == (state, event)]
        assert known == ([] if after is None else [after])
        state = after or state


def test_states_are_those_of_the_contract() -> None:
    prefix = "AGENT_STATE_"
    wire = {name.removeprefix(prefix) for name in types_pb2.AgentState.keys()}  # noqa: SIM118
    assert wire - {"UNSPECIFIED"} == set(AgentState)
    wire = {name.removeprefix("CREW_STATE_") for name in types_pb2.CrewState.keys()}  # noqa: SIM118
    assert wire - {"UNSPECIFIED"} == set(CrewState)


@given(
    now=st.sampled_from(CrewState),
    wish_gone=st.booleans(),
    failed=st.booleans(),
    members=st.lists(st.sampled_from(AgentState), max_size=12),
    min_ready=st.integers(0, 12),
)
def test_a_crew_is_what_its_members_are(
    now: CrewState, wish_gone: bool, failed: bool, members: list[AgentState], min_ready: int
) -> None:
    state = crew_state(now, wish_gone, failed, members, min_ready)
    is_end = state in (CrewState.DISBANDED, CrewState.FAILED)
    assert is_end == (wish_gone and all(m is AgentState.STOPPED for m in members))
    assert (state is CrewState.DRAINING) == (wish_gone and not is_end)
    if now is not CrewState.ASSEMBLING:
        assert state is not CrewState.ASSEMBLING, "a crew that was READY is never assembled again"
    if state is CrewState.READY and now is CrewState.ASSEMBLING:
        serving = (AgentState.READY, AgentState.BUSY, AgentState.HIBERNATING)
        left = (AgentState.STOPPED, AgentState.DRAINING)
        assert all(m in serving or m in left for m in members)
