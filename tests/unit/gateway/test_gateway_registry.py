"""What the gateway believes follows the factory's stream, whatever the order of its news."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.destination import Answer, Park, ToAgent, ToGroup, destination
from gateway.registry import Registry, Route, route_of, socket_path
from hyperfactory.v1 import types_pb2
from wire.errors import NotFound, Refused, Unavailable
from wire.identity import agent_authority

READY = types_pb2.AGENT_STATE_READY
NAME = agent_authority("coder", "c1")


def agent(name: str = "coder", *, state: int = READY, generation: int = 1, **more: object) -> types_pb2.Agent:
    made = types_pb2.Agent(
        id=f"id-{name}",
        uid=f"uid-{name}",
        name=name,
        crew="c1",
        state=types_pb2.AgentState.ValueType(state),
        generation=generation,
        endpoint=types_pb2.Endpoint(direct=f"unix:///run/{name}-{generation}.sock"),
    )
    made.MergeFrom(types_pb2.Agent(**more))  # type: ignore[arg-type]
    return made


def synced(*agents: types_pb2.Agent) -> Registry:
    registry = Registry()
    registry.begin()
    registry.apply(agents)
    registry.complete()
    return registry


def test_snapshot_replaces_what_was_held_only_when_it_is_complete() -> None:
    registry = synced(agent("old"), agent("kept"))
    registry.lost()
    registry.begin()
    registry.apply([agent("kept"), agent("new")])
    assert registry.find(agent_authority("old", "c1")) is not None
    registry.complete()
    assert {route.agent for route in registry.agents()} == {"id-kept", "id-new"}
    assert registry.current


def test_lost_stream_keeps_the_routes_and_says_that_they_may_be_stale() -> None:
    registry = synced(agent())
    registry.lost()
    assert registry.find(NAME) is not None
    assert registry.synced.is_set()
    assert not registry.current


@given(st.permutations([1, 2, 3, 4]))
def test_older_generation_never_returns(order: list[int]) -> None:
    registry = Registry()
    registry.apply([agent(generation=generation) for generation in order])
    found = registry.find(NAME)
    assert found is not None
    assert found.generation == 4


def test_stopped_agent_does_not_take_its_namesakes_route() -> None:
    registry = synced(agent(id="one", uid="one"))
    registry.apply([agent(id="two", uid="two")])
    registry.apply([agent(id="one", uid="one", state=types_pb2.AGENT_STATE_STOPPED)])
    found = registry.find(NAME)
    assert found is not None
    assert found.agent == "two"


def test_leaving_agent_does_not_take_its_successors_name_back() -> None:
    registry = synced(agent(id="one", uid="one"), agent(id="two", uid="two"))
    registry.apply([agent(id="one", uid="one", state=types_pb2.AGENT_STATE_DRAINING)])
    found = registry.find(NAME)
    assert found is not None
    assert found.agent == "two"


def test_only_changes_are_told() -> None:
    registry = synced(agent())
    told: list[tuple[Route, bool]] = []
    registry.observers.append(lambda route, gone: told.append((route, gone)))
    registry.apply([agent(), agent()])
    assert told == []
    registry.apply([agent(state=types_pb2.AGENT_STATE_STOPPED)])
    assert [(route.agent, gone) for route, gone in told] == [("id-coder", True)]


def test_bell_rings_for_its_own_name_only() -> None:
    registry = synced()
    with registry.watch(NAME) as mine, registry.watch(agent_authority("other", "c1")) as other:
        registry.apply([agent()])
        assert (mine.is_set(), other.is_set()) == (True, False)


def test_groups_are_their_members() -> None:
    members = [agent(f"coder-{n}", group="coder", replicas=2) for n in (1, 2)]
    registry = synced(*members, agent("single", group="single", replicas=1))
    assert {route.agent for route in registry.members(NAME)} == {"id-coder-1", "id-coder-2"}
    registry.apply([agent("coder-1", state=types_pb2.AGENT_STATE_STOPPED)])
    registry.apply([agent("coder-2", state=types_pb2.AGENT_STATE_STOPPED)])
    assert registry.members(NAME) == []


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("unix:///run/a.sock", "/run/a.sock"),
        ("unix:/run/a.sock", "/run/a.sock"),
        ("unix:relative.sock", ""),
        ("127.0.0.1:1", ""),
        ("", ""),
    ],
)
def test_only_absolute_unix_targets_are_dialled(target: str, path: str) -> None:
    assert socket_path(target) == path


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (types_pb2.AGENT_STATE_PROVISIONING, Park),
        (types_pb2.AGENT_STATE_WARMING, Park),
        (types_pb2.AGENT_STATE_READY, ToAgent),
        (types_pb2.AGENT_STATE_BUSY, ToAgent),
        (types_pb2.AGENT_STATE_HIBERNATING, Park),
        (types_pb2.AGENT_STATE_UNHEALTHY, Park),
        (types_pb2.AGENT_STATE_DRAINING, Answer),
        (types_pb2.AGENT_STATE_FAILED, Answer),
    ],
)
def test_state_decides_where_a_call_goes(state: int, kind: type) -> None:
    where = destination(NAME, route_of(agent(state=state)), group=False, routed=False, current=True)
    assert type(where) is kind
    assert not isinstance(where, Park) or bool(where.wake) == (state == types_pb2.AGENT_STATE_HIBERNATING)
    if isinstance(where, Answer):
        leaving = state == types_pb2.AGENT_STATE_DRAINING
        assert type(where.error) is (Unavailable if leaving else Refused)


def test_ready_agent_without_a_socket_is_waited_for() -> None:
    made = agent()
    made.endpoint.direct = ""
    assert isinstance(destination(NAME, route_of(made), group=False, routed=False, current=True), Park)


@pytest.mark.parametrize(
    ("group", "routed", "current", "kind"),
    [
        (True, True, True, ToGroup),
        (True, False, True, Park),
        (False, False, False, Park),
        (False, False, True, Answer),
    ],
)
def test_name_of_no_agent(group: bool, routed: bool, current: bool, kind: type) -> None:
    where = destination(NAME, None, group=group, routed=routed, current=current)
    assert type(where) is kind
    assert not isinstance(where, Answer) or type(where.error) is NotFound


def test_a_frozen_agent_is_waited_for_and_woken() -> None:
    cold = agent(state=types_pb2.AGENT_STATE_READY)
    cold.frozen_time.GetCurrentTime()
    route = route_of(cold)
    where = destination(NAME, route, group=False, routed=False, current=True)
    assert not route.serving
    assert isinstance(where, Park)
    assert where.wake == route
