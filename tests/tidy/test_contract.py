"""The contract is complete: policy rows, comments, enums with a zero, methods that somebody serves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
)

from hyperfactory.v1 import options_pb2
from tests.tidy.source import ROOT, functions, modules

SERVICE_FIELD, METHOD_FIELD, ENUM_FIELD = 6, 2, 5
SERVERS = {
    "AgentService": ("agent_runtime",),
    "CrewService": ("factory_server",),
    "FactoryService": ("factory_server",),
    "ProfileService": ("factory_server",),
    "SkillService": ("factory_server",),
    "ToolService": ("factory_server",),
}


def _files() -> list[FileDescriptorProto]:
    every = FileDescriptorSet.FromString((ROOT / "gen" / "hyperfactory.binpb").read_bytes()).file
    return [file for file in every if file.package.startswith("hyperfactory.")]


def _methods() -> Iterator[tuple[str, str, MethodDescriptorProto, str]]:
    for file in _files():
        comments = {tuple(c.path): c.leading_comments.strip() for c in file.source_code_info.location}
        for s, service in enumerate(file.service):
            for m, method in enumerate(service.method):
                yield service.name, method.name, method, comments.get((SERVICE_FIELD, s, METHOD_FIELD, m), "")


def _enums() -> Iterator[EnumDescriptorProto]:
    for file in _files():
        yield from file.enum_type
        for message in file.message_type:
            yield from message.enum_type


METHODS = list(_methods())
IDS = [f"{service}.{name}" for service, name, _, _ in METHODS]


@pytest.mark.parametrize(("service", "name", "method", "comment"), METHODS, ids=IDS)
def test_every_method_has_a_policy_row_and_a_comment(
    service: str, name: str, method: MethodDescriptorProto, comment: str
) -> None:
    assert comment
    assert method.options.HasExtension(options_pb2.policy)
    policy = method.options.Extensions[options_pb2.policy]
    assert policy.principals
    assert options_pb2.PRINCIPAL_UNSPECIFIED not in policy.principals
    if not method.server_streaming:
        assert policy.default_deadline_ms > 0


@pytest.mark.parametrize(("service", "name", "method", "comment"), METHODS, ids=IDS)
def test_what_changes_something_can_be_repeated(
    service: str, name: str, method: MethodDescriptorProto, comment: str
) -> None:
    policy = method.options.Extensions[options_pb2.policy]
    if not policy.mutates:
        return
    assert method.options.idempotency_level != MethodOptions.NO_SIDE_EFFECTS
    request = _message(method.input_type)
    if method.client_streaming:  # the first message of a stream says it, in its header
        (header,) = [field for field in request.field if field.name == "header"]
        request = _message(header.type_name)
    assert "request_id" in {field.name for field in request.field}


def _message(type_name: str) -> DescriptorProto:
    name = type_name.rpartition(".")[2]
    (found,) = [m for file in _files() for m in file.message_type if m.name == name]
    return found


@pytest.mark.parametrize("service", sorted({service for service, *_ in METHODS}))
def test_every_served_method_is_written_somewhere(service: str) -> None:
    written = {f.name for module in modules(*SERVERS[service]) for f in functions(module)}
    served = {
        name
        for of, name, method, _ in METHODS
        if of == service and not method.options.Extensions[options_pb2.policy].planned
    }
    assert not served - written


@pytest.mark.parametrize("enum", list(_enums()), ids=lambda enum: enum.name)
def test_every_enum_starts_with_nothing_said(enum: EnumDescriptorProto) -> None:
    (zero,) = [value.name for value in enum.value if value.number == 0]
    assert zero.endswith("_UNSPECIFIED")
