"""Places of methods in HTTP, and requests made from path, query and body."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from factory_server.api.http import openapi
from factory_server.api.http.bindings import Binding, bindings
from factory_server.api.http.decode import Asked, Decoder
from factory_server.api.http.rest import PLANNED
from factory_server.api.server import DESCRIPTORS
from hyperfactory.v1 import crew_service_pb2, types_pb2
from wire.errors import Invalid

SERVICES = {service.full_name: service for service in (*DESCRIPTORS, *PLANNED)}
PLACES = {binding.method.name: binding for binding in bindings(*SERVICES.values())}


def decode(method: str, query: Sequence[tuple[str, str]] = (), body: Any = None, **more: Any) -> Any:
    raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    path = more.pop("path", {})
    return Decoder(PLACES[method])(Asked(path=path, query=query, body=raw, **more))


def refused(field: str, method: str, *arguments: Any, **more: Any) -> None:
    with pytest.raises(Invalid) as error:
        decode(method, *arguments, **more)
    assert [violation.field for violation in error.value.violations] == [field]


def test_every_method_has_a_place_of_its_own() -> None:
    methods = {method.name for service in SERVICES.values() for method in service.methods}
    assert PLACES.keys() == methods
    places = [(binding.verb, binding.path) for binding in PLACES.values()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("binding", PLACES.values(), ids=PLACES.keys())
def test_a_place_fits_its_method(binding: Binding) -> None:
    fields = binding.method.input_type.fields_by_name
    assert binding.body in ("", "*") or binding.body in fields
    for variable in binding.variables:
        assert variable.field.split(".")[0] in fields
    reads = binding.method.GetOptions().idempotency_level == 1
    assert (binding.verb == "GET") == reads or binding.method.name == "SearchVectors"


def test_the_manifest_is_the_body() -> None:
    key = str(uuid.uuid4())
    body = {"name": "a", "ttl": 90, "policy": {"onMemberFailure": "DISBAND"}, "members": []}
    made = decode("AssembleCrew", [("validateOnly", "true"), ("wait", "ACCEPTED")], body, key=key)
    assert made.request_id == key
    assert made.manifest.ttl.seconds == 90
    assert made.manifest.policy.on_member_failure == crew_service_pb2.MEMBER_FAILURE_DISBAND
    assert made.wait == crew_service_pb2.WAIT_FOR_ACCEPTED
    assert made.validate_only


def test_a_key_is_made_where_none_is_given_and_told() -> None:
    told: list[str] = []
    made = decode("DisbandCrew", path={"crew": "c1"}, tell_key=told.append)
    assert told == [made.request_id]
    assert uuid.UUID(made.request_id)
    own = decode("Broadcast", (), {"requestId": "mine", "signal": "GO"}, path={"crew": "c1"})
    assert own.request_id == "mine"
    refused("request_id", "Broadcast", (), {"requestId": "mine"}, path={"crew": "c1"}, key="other")


def test_queries_nest_repeat_and_read_words() -> None:
    query = [
        ("filter.types", "CREW_STATE"),
        ("filter.types", "EVENT_TYPE_SIGNAL"),
        ("filter.agents", "a1"),
        ("bookmarkInterval", "1.5s"),
        ("from_latest", "true"),
    ]
    made = decode("WatchCrew", query, path={"crew": "-"})
    assert made.crew == "-"
    assert len(made.filter.types) == 2
    assert list(made.filter.agents) == ["a1"]
    assert made.bookmark_interval.ToMilliseconds() == 1500
    assert made.from_latest


def test_the_last_event_comes_before_the_cursor_of_the_query() -> None:
    made = decode("WatchCrew", [("cursor", "old")], path={"crew": "c1"}, last_event="new")
    assert made.cursor == "new"


def test_a_path_may_lead_into_a_message() -> None:
    body = {"description": "d", "spec": {"scope": "coder"}}
    query = [("updateMask", "description,spec.scope"), ("validateOnly", "false")]
    made = decode("UpdateProfile", query, body, path={"profile__name": "mine"})
    assert made.profile.name == "mine"
    assert list(made.update_mask.paths) == ["description", "spec.scope"]
    assert isinstance(made.profile, types_pb2.Profile)
    refused("name", "UpdateProfile", (), {"name": "other"}, path={"profile__name": "mine"})


def test_what_is_unknown_or_unreadable_is_named() -> None:
    refused("colour", "ListCrews", [("colour", "red")])
    refused("pageSize", "ListCrews", [("pageSize", "many")])
    refused("filter", "ListCrews", [("filter", "a"), ("filter", "b")])
    refused("fromLatest", "WatchCrew", [("fromLatest", "1")], path={"crew": "c"})
    refused("manifest.members[0].nam", "AssembleCrew", (), {"members": [{"nam": 1}]})
    refused("manifest.policy", "AssembleCrew", (), {"policy": 1})
    refused("body", "AssembleCrew", (), b"[1]")
    refused("body", "AssembleCrew", (), b"\xff")
    refused("body", "AssembleCrew", (), b"[" * 100_000)
    refused("body", "ListCrews", (), {"pageSize": 1})
    refused("crew", "Broadcast", (), {"crew": "c2", "signal": "GO"}, path={"crew": "c1"})


def test_the_description_holds_together() -> None:
    described = json.loads(openapi.document(PLACES.values()))
    text = json.dumps(described)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}:
        assert described["components"]["schemas"][reference]
    for path, item in described["paths"].items():
        for operation in item.values():
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == {part.split("}")[0] for part in path.split("{")[1:]}
            assert operation["description"]
    manifest = described["components"]["schemas"]["CrewManifestInput"]
    assert manifest["properties"]["members"]["maxItems"] == 500
    assert set(manifest["required"]) == {"name", "members"}


def test_the_description_is_one_that_generators_read() -> None:
    """They want to know what a list holds, and a name of its own for each operation."""
    described = json.loads(openapi.document(PLACES.values()))
    ids = [operation["operationId"] for item in described["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)
    for where, schema in walk(described):
        kinds = schema.get("type")
        assert kinds != "array" or "items" in schema or where.endswith("ListValue"), where
        assert not isinstance(kinds, list) or "array" not in kinds, where


def walk(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a document with the way to it."""
    if isinstance(value, dict):
        yield where, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, f"{where}/{key}")
