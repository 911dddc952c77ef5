"""The small grammar of list filters: what it means, and how it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_server.core.errors import Invalid
from factory_server.core.filters import agent_filter, crew_filter
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import AgentFilter, CrewFilter


def test_nothing_means_any():
    assert agent_filter("") == agent_filter("  ") == AgentFilter()
    assert crew_filter("") == CrewFilter()


def test_terms_are_joined():
    found = agent_filter("state=ready|BUSY AND crew=c1 AND profile=coder AND label.team=blue")
    states = frozenset({AgentState.READY, AgentState.BUSY})
    assert found == AgentFilter(states, "c1", "coder", {"team": "blue"})


def test_crews_have_names_of_their_own():
    found = crew_filter("name=demo AND state=DEGRADED AND label.a=b=c")
    assert found == CrewFilter(frozenset({CrewState.DEGRADED}), "demo", {"a": "b=c"})


@pytest.mark.parametrize(
    "text",
    [
        "crew",
        "crew=",
        "=c1",
        "name=x",
        "state=ASLEEP",
        "state=READY|ASLEEP",
        "crew=c1 AND",
        "crew=c1 and profile=coder",
        "crew=c1 AND crew=c2",
        "owner=me",
    ],
)
def test_what_is_not_understood_is_refused_by_field(text: str):
    with pytest.raises(Invalid) as refused:
        agent_filter(text)
    assert [(v.field, v.reason) for v in refused.value.violations] == [("filter", "FILTER_INVALID")]


@given(st.text(max_size=80))
def test_any_text_is_understood_or_refused(text):
    for parse in (agent_filter, crew_filter):
        try:
            parse(text)
        except Invalid:
            continue
