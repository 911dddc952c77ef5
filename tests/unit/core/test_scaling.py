"""What a new manifest changes in a crew: who comes, who goes, and what is refused by its field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from factory_server.core import manifest as manifests
from factory_server.core.errors import Invalid, Refused
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import AgentRow, CrewPlan, CrewRow, ProfileRow
from factory_server.core.scaling import change
from hyperfactory.v1 import crew_service_pb2, types_pb2

NOW = datetime(2026, 11, 22, tzinfo=UTC)
TEAM = {
    "name": "team",
    "members": [{"name": "lead", "profile": "p"}, {"name": "coder", "profile": "p", "replicas": 2}],
}


def plan(**changes: Any) -> CrewPlan:
    message = ParseDict(TEAM | changes, crew_service_pb2.CrewManifest())
    spec = types_pb2.ProfileSpec(scope="coder")
    profile = ProfileRow("p", 1, "sha256:1", spec, "PROMOTED", "", NOW, NOW)
    numbers = iter(range(10**6))
    return manifests.plan_crew(message, {"p": profile}, lambda prefix: f"{prefix}{next(numbers)}")


def living(state: CrewState = CrewState.READY, **changes: Any) -> CrewRow:
    """A crew as assembled from TEAM."""
    planned = plan(**changes)
    agents = [
        AgentRow(
            **{f.name: getattr(a, f.name) for f in dataclasses.fields(a)},
            crew="c",
            state=AgentState.READY,
            generation=1,
            warm=True,
            reason="",
            message="",
            created_at=NOW,
            updated_at=NOW,
        )
        for a in planned.agents
    ]
    return CrewRow(
        id="c",
        uid="k",
        name="team",
        manifest=planned.manifest,
        state=state,
        wish_gone=False,
        failed=False,
        solo=False,
        last_sequence=1,
        reason="",
        message="",
        created_at=NOW,
        updated_at=NOW,
        agents=agents,
    )


def with_state(crew: CrewRow, name: str, state: AgentState) -> CrewRow:
    agents = [dataclasses.replace(a, state=state) if a.name == name else a for a in crew.agents]
    return dataclasses.replace(crew, agents=agents)


def members(*wished: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"name": name, "profile": "p", "replicas": count} for name, count in wished]


@pytest.mark.parametrize(
    ("wished", "added", "removed"),
    [
        ((("lead", 1), ("coder", 2)), [], []),
        ((("lead", 1), ("coder", 3)), ["coder-3"], []),
        ((("lead", 1), ("coder", 1)), ["coder"], ["coder-1", "coder-2"]),
        ((("coder", 2),), [], ["lead"]),
        ((("lead", 1), ("coder", 2), ("critic", 1)), ["critic"], []),
        ((("lead", 2), ("coder", 2)), ["lead-1", "lead-2"], ["lead"]),
    ],
)
def test_who_comes_and_who_goes(wished: Any, added: list[str], removed: list[str]) -> None:
    made = change(living(), plan(members=members(*wished)), NOW)
    assert ([a.name for a in made.added], [a.name for a in made.removed]) == (added, removed)


def test_members_that_stay_hear_of_their_groups_size() -> None:
    crew = living()
    made = change(crew, plan(members=members(("lead", 1), ("coder", 4))), NOW)
    assert made.replicas == {a.id: 4 for a in crew.agents if a.group == "coder"}


def test_who_joined_singly_stays_and_its_name_is_taken() -> None:
    crew = living()
    guest = dataclasses.replace(crew.agents[0], id="guest", name="guest", group="guest")
    crew = dataclasses.replace(crew, agents=[*crew.agents, guest])
    assert not change(crew, plan(members=members(("lead", 1), ("coder", 2))), NOW).removed
    assert fields(lambda: change(crew, plan(members=members(("lead", 1), ("guest", 1))), NOW)) == {
        "manifest.members[1].name": "DUPLICATE"
    }


def test_one_that_was_stopped_comes_again_as_the_manifest_says() -> None:
    crew = with_state(living(), "coder-2", AgentState.STOPPED)
    assert [a.name for a in change(crew, plan(), NOW).added] == ["coder-2"]


def test_a_name_whose_bearer_is_leaving_is_not_free_yet() -> None:
    crew = with_state(living(), "coder-2", AgentState.DRAINING)
    with pytest.raises(Refused) as caught:
        change(crew, plan(), NOW)
    assert caught.value.metadata["member"] == "coder-2"
    assert not change(crew, plan(members=members(("lead", 1))), NOW).added


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "other"}, "manifest.name"),
        ({"context": {"k": 1}}, "manifest.context"),
        ({"network": {"allowEgress": True}}, "manifest.network"),
        ({"members": [{"name": "lead", "profile": "p", "env": {"A": "1"}}]}, "manifest.members[0].env"),
        ({"members": [{"name": "lead", "profile": "p", "scope": "reviewer"}]}, "manifest.members[0].scope"),
        ({"members": [{"name": "lead", "profile": "p", "labels": {"a": "b"}}]}, "manifest.members[0].labels"),
    ],
)
def test_what_stays_is_named(changes: dict[str, Any], field: str) -> None:
    assert fields(lambda: change(living(), plan(**changes), NOW)) == {field: "IMMUTABLE"}


def test_the_first_context_and_the_network_are_kept_in_the_manifest() -> None:
    crew = living(context={"goal": "x"}, network={"allowEgress": True, "egressHosts": ["example.com"]})
    made = change(crew, plan(labels={"a": "b"}), NOW)
    assert made.manifest.context == crew.manifest.context
    assert made.manifest.network == crew.manifest.network
    assert dict(made.manifest.labels) == {"a": "b"}
    assert change(crew, plan(context={"goal": "x"}), NOW).manifest.context == crew.manifest.context


def test_the_ttl_counts_from_the_beginning() -> None:
    later = NOW + timedelta(seconds=60)
    assert change(living(), plan(ttl="90s"), later).expires_at == NOW + timedelta(seconds=90)
    assert change(living(ttl="90s"), plan(), later).expires_at is None
    assert fields(lambda: change(living(), plan(ttl="60s"), later)) == {"manifest.ttl": "TOO_SMALL"}


@pytest.mark.parametrize(
    "state", [CrewState.ASSEMBLING, CrewState.DRAINING, CrewState.DISBANDED, CrewState.FAILED]
)
def test_only_a_crew_that_stands_is_updated(state: CrewState) -> None:
    with pytest.raises(Refused):
        change(living(state), plan(), NOW)


def test_the_crew_of_a_single_agent_is_not_updated() -> None:
    with pytest.raises(Refused):
        change(dataclasses.replace(living(), solo=True), plan(), NOW)


def fields(call: Callable[[], object]) -> dict[str, str]:
    """Which fields a refusal names, and why."""
    with pytest.raises(Invalid) as caught:
        call()
    return {violation.field: violation.reason for violation in caught.value.violations}
