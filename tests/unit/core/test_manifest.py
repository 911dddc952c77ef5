"""A manifest becomes a plan, or each of its bad fields is named."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from some_profiles import PROFILES

from factory_server.core import manifest as manifests
from factory_server.core.errors import Invalid
from factory_server.core.model import CrewPlan
from hyperfactory.v1 import crew_service_pb2


def manifest(**fields: Any) -> crew_service_pb2.CrewManifest:
    whole = {"name": "demo", "members": [{"name": "w", "profile": "coder"}]} | fields
    return ParseDict(whole, crew_service_pb2.CrewManifest())


def plan(**fields: Any) -> CrewPlan:
    numbers = itertools.count(1)
    return manifests.plan_crew(manifest(**fields), PROFILES, lambda prefix: f"{prefix}{next(numbers)}")


def refused(**fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as error:
        plan(**fields)
    return [(v.field, v.reason) for v in error.value.violations]


def member(name: str = "w", profile: str = "coder", **fields: Any) -> dict[str, Any]:
    return {"name": name, "profile": profile} | fields


def test_replicas_are_numbered_and_one_is_not():
    made = plan(members=[member("a", replicas=3), member("b", replicas=1), member("c")])
    assert [a.name for a in made.agents] == ["a-1", "a-2", "a-3", "b", "c"]
    assert [(a.group, a.replicas) for a in made.agents] == [("a", 3)] * 3 + [("b", 1), ("c", 1)]


def test_ids_and_uids_are_all_different():
    made = plan(members=[member(replicas=3)])
    names = [made.id, made.uid, *(a.id for a in made.agents), *(a.uid for a in made.agents)]
    assert len(set(names)) == len(names)


def test_a_members_wishes_are_merged_over_its_profile():
    made = plan(members=[member(env={"A": "mine", "B": "new"}, skills=["git", "sql"], labels={"x": "y"})])
    spec = made.agents[0].spec
    assert dict(spec.env) == {"A": "mine", "B": "new", "C": "kept"}
    assert list(spec.skills) == ["git", "sql"], "a skill that the profile has is not doubled"
    assert made.agents[0].labels == {"x": "y"}
    assert dict(PROFILES["coder"].spec.env) == {"A": "theirs", "C": "kept"}, "the profile itself stays"


def test_a_scope_may_be_narrowed_and_is_the_profiles_otherwise():
    assert plan(members=[member(scope="reviewer")]).agents[0].scope == "reviewer"
    assert plan().agents[0].scope == "coder"
    assert plan(members=[member(profile="bare")]).agents[0].scope == "coder", "where nobody says one"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"members": [member(profile="nope")]}, [("manifest.members[0].profile", "UNKNOWN_PROFILE")]),
        ({"members": [member(profile="old")]}, [("manifest.members[0].profile", "RETIRED_PROFILE")]),
        ({"members": [member(scope="admin")]}, [("manifest.members[0].scope", "SCOPE_WIDENED")]),
        (
            {"members": [member(profile="judge", scope="coder")]},
            [("manifest.members[0].scope", "SCOPE_WIDENED")],
        ),
        ({"members": [member(), member()]}, [("manifest.members[1].name", "DUPLICATE")]),
        (
            {"members": [member("a", replicas=2), member("a-2")]},
            [("manifest.members[1].name", "DUPLICATE")],
        ),
        (
            {"members": [member("a-1"), member("a", replicas=2)]},
            [("manifest.members[1].name", "DUPLICATE")],
        ),
        (
            {"members": [member("a", replicas=2), member("a")]},
            [("manifest.members[1].name", "DUPLICATE")],
        ),
        ({"members": [member("n" * 62, replicas=10)]}, [("manifest.members[0].name", "TOO_LONG")]),
        ({"members": [member(replicas=300), member("b", replicas=201)]}, [("manifest.members", "TOO_MANY")]),
        ({"policy": {"min_ready": 2}}, [("manifest.policy.min_ready", "TOO_LARGE")]),
        ({"context": {"big": "x" * 70_000}}, [('manifest.context["big"]', "TOO_LARGE")]),
        ({"network": {"egress_hosts": ["a.example"]}}, [("manifest.network.egress_hosts", "CONTRADICTION")]),
    ],
)
def test_each_bad_field_is_named(fields: dict[str, Any], expected: list[tuple[str, str]]):
    assert refused(**fields) == expected


def test_all_bad_fields_are_named_at_once():
    found = refused(
        members=[member(profile="nope"), member(scope="admin")],
        policy={"min_ready": 9},
        network={"egress_hosts": ["a.example"]},
    )
    assert [field for field, _ in found] == [
        "manifest.members[0].profile",
        "manifest.members[1].scope",
        "manifest.members[1].name",
        "manifest.policy.min_ready",
        "manifest.network.egress_hosts",
    ]


def test_limits_themselves_are_allowed():
    assert len(plan(members=[member(replicas=500)]).agents) == 500
    assert plan(policy={"min_ready": 1}).agents
    assert plan(network={"egress_hosts": ["a.example"], "allow_egress": True}).agents


def test_a_manifest_that_is_too_large_is_not_looked_at():
    fits = manifest(annotations={"note": "x" * (manifests.MANIFEST_BYTES_MAX - 200)})
    manifests.check_size(fits)
    with pytest.raises(Invalid) as error:
        manifests.check_size(manifest(annotations={"note": "x" * manifests.MANIFEST_BYTES_MAX}))
    assert [v.reason for v in error.value.violations] == ["TOO_LARGE"]
