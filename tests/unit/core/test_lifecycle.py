"""The transition table is whole, and a crew's state follows from its members."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_server.core.lifecycle import (
    LIVE,
    TABLE,
    TERMINAL,
    AgentEvent,
    AgentState,
    CrewState,
    advance,
    crew_state,
)

S, C = AgentState, CrewState
members = st.lists(st.sampled_from(S), max_size=6)


def reachable(start: AgentState | None) -> set[AgentState]:
    found: set[AgentState] = set()
    edge: list[AgentState | None] = [start]
    while edge:
        state = edge.pop()
        fresh = {t.target for t in TABLE if t.source is state} - found
        found |= fresh
        edge += fresh
    return found


def test_every_state_is_reachable():
    assert reachable(None) == set(AgentState)


def test_stopped_is_reachable_from_everywhere_and_final():
    assert all(S.STOPPED in reachable(state) for state in set(S) - {S.STOPPED})
    assert reachable(S.STOPPED) == set()


def test_no_event_is_unused_and_no_row_is_doubled():
    assert {t.event for t in TABLE} == set(AgentEvent)
    keys = [(t.source, t.event) for t in TABLE]
    assert len(keys) == len(set(keys))


def test_every_live_state_and_a_failed_agent_can_be_shut_down():
    assert all(advance(s, AgentEvent.SHUTDOWN) is S.DRAINING for s in (*LIVE, S.FAILED))
    assert set(LIVE) | {S.DRAINING, *TERMINAL} == set(S)


def test_nothing_else_moves():
    known = {(t.source, t.event) for t in TABLE}
    for pair in itertools.product((None, *S), AgentEvent):
        assert (advance(*pair) is None) == (pair not in known)


@pytest.mark.parametrize(
    ("now", "states", "min_ready", "expected"),
    [
        (C.ASSEMBLING, [S.READY, S.WARMING], 0, C.ASSEMBLING),
        (C.ASSEMBLING, [S.READY, S.READY], 0, C.READY),
        (C.ASSEMBLING, [S.READY, S.WARMING], 1, C.ASSEMBLING),
        (C.ASSEMBLING, [S.READY, S.STOPPED], 0, C.READY),
        (C.READY, [S.READY, S.BUSY, S.HIBERNATING], 0, C.READY),
        (C.READY, [S.READY, S.UNHEALTHY], 0, C.DEGRADED),
        (C.READY, [S.READY, S.UNHEALTHY], 1, C.READY),
        (C.READY, [S.READY, S.FAILED], 0, C.DEGRADED),
        (C.READY, [S.READY, S.DRAINING], 0, C.READY),
        (C.DEGRADED, [S.READY, S.READY], 0, C.READY),
        (C.READY, [S.READY], 5, C.READY),
    ],
)
def test_a_live_crews_state(now: CrewState, states: list[AgentState], min_ready: int, expected: CrewState):
    assert crew_state(now, False, False, states, min_ready) is expected


@given(st.sampled_from(C), members, st.integers(0, 6), st.booleans())
def test_a_crew_that_is_wished_gone_ends_only_with_its_last_member(now, states, min_ready, failed):
    end = C.FAILED if failed else C.DISBANDED
    left = any(s is not S.STOPPED for s in states)
    assert crew_state(now, True, failed, states, min_ready) is (C.DRAINING if left else end)


@given(st.sampled_from([C.ASSEMBLING, C.READY, C.DEGRADED]), members, st.integers(0, 6))
def test_a_live_crew_never_ends_by_itself(now, states, min_ready):
    found = crew_state(now, False, False, states, min_ready)
    assert found in (C.ASSEMBLING, C.READY, C.DEGRADED)
    assert found is not C.ASSEMBLING or now is C.ASSEMBLING
    # The same question again has the same answer: a state does not move without a member's move.
    assert crew_state(found, False, False, states, min_ready) is found or now is C.ASSEMBLING
