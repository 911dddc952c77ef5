"""Call any method by its descriptor: JSON in, JSON out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from factory_cli.client import CALL_WITHIN_S, connect
from factory_cli.failures import UsageFailedError
from factory_cli.output import Output
from factory_cli.requests import new_id
from factory_cli.session import Session
from hyperfactory.v1 import (
    agent_service_pb2,
    crew_service_pb2,
    factory_service_pb2,
    options_pb2,
    profile_service_pb2,
    skill_service_pb2,
    tool_service_pb2,
)
from wire.proto_json import fill, load_object

REQUEST_MAX_BYTES = 4 * 1024 * 1024
_FILES = (
    factory_service_pb2,
    crew_service_pb2,
    profile_service_pb2,
    skill_service_pb2,
    tool_service_pb2,
    agent_service_pb2,
    health_pb2,
)
_AGENT = agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"]


def services() -> Iterator[ServiceDescriptor]:
    """Yield every service a client may meet here."""
    for file in _FILES:
        yield from file.DESCRIPTOR.services_by_name.values()


def list_methods(out: Output) -> None:
    """Print every method with what it takes and gives."""
    rows = [_row(method) for service in services() for method in service.methods]
    if out.as_json:
        keys = ("method", "kind", "request", "response", "served")
        out.document({"methods": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    out.table(("METHOD", "KIND", "REQUEST", "RESPONSE", "SERVED"), rows)


def _row(method: MethodDescriptor) -> tuple[str, str, str, str, str]:
    planned = method.GetOptions().Extensions[options_pb2.policy].planned
    return (
        f"{method.containing_service.full_name}/{method.name}",
        {(False, False): "unary", (False, True): "stream", (True, True): "bidi", (True, False): "upload"}[
            method.client_streaming, method.server_streaming
        ],
        method.input_type.name,
        method.output_type.name,
        f"later: {planned}" if planned else "yes",
    )


def find(name: str) -> MethodDescriptor:
    """Find a method by its full name, its service and name, or its name alone where that is clear."""
    wanted = name.strip("/").replace("/", ".").split(".")
    found = [
        method
        for service in services()
        for method in service.methods
        if method.full_name.split(".")[-len(wanted) :] == wanted
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageFailedError(f"there is no method '{name}'; 'hyperfactory call --list' names them all")
    names = ", ".join(f"{method.containing_service.name}/{method.name}" for method in found)
    raise UsageFailedError(f"'{name}' may be any of {names}")


async def call(session: Session, name: str, text: str, authority: str, timeout_s: float) -> None:
    """Call a method and print what it answers."""
    method = find(name)
    if method.client_streaming:
        raise UsageFailedError(
            f"'{name}' takes a stream of requests, which JSON on a command line cannot carry"
        )
    if method.containing_service is _AGENT and not authority:
        raise UsageFailedError(f"'{name}' is served by agents: name one with --authority")
    request = _request(method, sys.stdin.read(REQUEST_MAX_BYTES) if text == "-" else text)
    path = f"/{method.containing_service.full_name}/{method.name}"
    response_type = GetMessageClass(method.output_type)
    async with connect(session.client_file, authority=authority) as client:
        if not method.server_streaming:
            invoke = client.channel.unary_unary(path, _encode, response_type.FromString)
            session.out.document(await invoke(request, timeout=timeout_s or _deadline_s(method)))
            return
        stream = client.channel.unary_stream(path, _encode, response_type.FromString)
        async for response in stream(request, timeout=timeout_s or None):
            session.out.line(response)


def _request(method: MethodDescriptor, text: str) -> Message:
    """Parse the request; a request_id that is left out is made here."""
    message = GetMessageClass(method.input_type)()
    fill(load_object(text or "{}", "request"), message, "request")
    if "request_id" in method.input_type.fields_by_name and not getattr(message, "request_id", ""):
        setattr(message, "request_id", new_id())  # noqa: B010  a message of any type
    return message


def _deadline_s(method: MethodDescriptor) -> float:
    declared_ms: int = method.GetOptions().Extensions[options_pb2.policy].default_deadline_ms
    return declared_ms / 1000 or CALL_WITHIN_S


def _encode(message: Any) -> bytes:
    return bytes(message.SerializeToString())
