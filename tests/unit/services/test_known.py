"""A keeper answers with a crew that it committed READY itself only while it knows every member of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from service_parts import NOW, agent

from factory_server.core.lifecycle import AgentEvent, AgentState, CrewState
from factory_server.core.model import CrewHead, CrewRow, Step, Stepped, StepResult
from factory_server.services.known import KnownCrew
from hyperfactory.v1 import crew_service_pb2


def known(*agents) -> KnownCrew:
    crew = CrewRow(
        "c1", "u1", "c", crew_service_pb2.CrewManifest(), CrewState.ASSEMBLING, False, False, False, 3,
        "Requested", "", NOW, NOW, agents=list(agents),
    )  # fmt: skip
    found = KnownCrew()
    found.begin_to_read()
    found.see(crew)
    return found


def stepped(row, state: CrewState, members: set[str]) -> Stepped:
    step = Step(row.id, row.generation, (AgentState.WARMING,), AgentEvent.HEALTH_OK, "factory")
    head = CrewHead("MembersReady", "", NOW, frozenset(members))
    return Stepped([StepResult(step, row)], state, 5, head)


def test_the_crew_is_as_the_commit_left_it():
    warming = [agent(name, AgentState.WARMING) for name in ("w-10", "w-9")]
    crew = known(*warming)
    ready = [replace(row, state=AgentState.READY) for row in warming]
    members = {row.id for row in ready}
    crew.committed(stepped(ready[0], CrewState.ASSEMBLING, members))
    assert crew.ready is None
    crew.committed(stepped(ready[1], CrewState.READY, members))
    assert crew.ready is not None
    assert (crew.ready.state, crew.ready.last_sequence, crew.ready.ready_at) == (CrewState.READY, 5, NOW)
    assert crew.ready.reason == "MembersReady"
    assert {row.id: row.state for row in crew.ready.agents} == dict.fromkeys(members, AgentState.READY)
    assert [row.name for row in crew.ready.agents] == ["w-9", "w-10"], "in the order of the store's answers"


@pytest.mark.parametrize("members", [{"a-a", "a-added-elsewhere"}, set()])
def test_with_a_member_that_is_not_known_the_store_is_asked(members):
    crew = known(agent("a", AgentState.WARMING))
    crew.committed(stepped(agent("a"), CrewState.READY, members))
    assert crew.ready is None


def test_what_comes_after_ready_takes_the_answer_back():
    crew = known(agent("a", AgentState.WARMING))
    crew.committed(stepped(agent("a"), CrewState.READY, {"a-a"}))
    assert crew.ready is not None
    crew.committed(stepped(agent("a", AgentState.UNHEALTHY), CrewState.DEGRADED, {"a-a"}))
    assert crew.ready is None
