"""What the watchdog knows of the registry: snapshots replace, changes add, nothing is lost by a lost stream."""

from __future__ import annotations

import pytest

from hyperfactory.v1.factory_service_pb2 import WatchAgentsResponse
from hyperfactory.v1.types_pb2 import Agent, AgentState, Endpoint
from watchdog.core import PROBED_STATES, is_probed
from watchdog.registry import View


def agent(name: str, state: AgentState.ValueType = AgentState.AGENT_STATE_READY) -> Agent:
    return Agent(id=name, state=state, generation=1, endpoint=Endpoint(direct="unix:/x"))


def synced_view(*names: str) -> View:
    view = View()
    view.begin()
    view.feed(WatchAgentsResponse(agents=[agent(name) for name in names]))
    view.feed(WatchAgentsResponse(synced=True))
    return view


def test_nothing_changes_before_the_snapshot_is_complete() -> None:
    view = synced_view("a", "b")
    view.begin()
    change = view.feed(WatchAgentsResponse(agents=[agent("c")]))
    assert not list(change.present) and not list(change.gone)
    assert set(view.agents) == {"a", "b"}


def test_a_snapshot_replaces_what_was_held() -> None:
    view = synced_view("a", "b")
    view.begin()
    view.feed(WatchAgentsResponse(agents=[agent("b")]))
    change = view.feed(WatchAgentsResponse(agents=[agent("c")], synced=True))
    assert set(view.agents) == {"b", "c"}
    assert list(change.gone) == ["a"]
    assert {a.id for a in change.present} == {"b", "c"}


def test_a_stream_lost_before_its_snapshot_was_complete_changes_nothing() -> None:
    view = synced_view("a")
    view.begin()
    view.feed(WatchAgentsResponse(agents=[agent("b")]))
    view.begin()
    view.feed(WatchAgentsResponse(agents=[agent("a")], synced=True))
    assert set(view.agents) == {"a"}


def test_a_bookmark_that_says_synced_again_forgets_nobody() -> None:
    view = synced_view("a")
    change = view.feed(WatchAgentsResponse(synced=True))
    assert set(view.agents) == {"a"}
    assert not list(change.gone)


def test_a_stopped_agent_is_gone() -> None:
    view = synced_view("a")
    change = view.feed(WatchAgentsResponse(agents=[agent("a", AgentState.AGENT_STATE_STOPPED)]))
    assert list(change.gone) == ["a"]
    assert not view.agents


@pytest.mark.parametrize("state", AgentState.values())
def test_only_agents_that_should_answer_are_probed(state: AgentState.ValueType) -> None:
    assert is_probed(agent("a", state)) == (state in PROBED_STATES)


def test_an_agent_without_an_address_is_not_probed() -> None:
    unborn = agent("a", AgentState.AGENT_STATE_WARMING)
    unborn.endpoint.direct = ""
    assert not is_probed(unborn)


def test_a_frozen_agent_is_not_probed() -> None:
    cold = agent("a", AgentState.AGENT_STATE_READY)
    cold.frozen_time.GetCurrentTime()
    assert not is_probed(cold)
