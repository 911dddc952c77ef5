"""Serve the contract's methods as REST: the same guard and the same handlers as over gRPC, in process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp import web
from google.protobuf.descriptor import ServiceDescriptor

from factory_server.api.http import answers
from factory_server.api.http.app import HttpFace, read_body
from factory_server.api.http.bindings import Binding, bindings
from factory_server.api.http.context import HttpContext
from factory_server.api.http.decode import Asked, Decoder, asked_of
from factory_server.api.http.failures import JSON, Aborted
from factory_server.api.http.uploads import Upload
from hyperfactory.v1 import skill_service_pb2, tool_service_pb2
from wire.guarded import GuardedMethod
from wire.policy import PolicyTable, Row, method_path

# Have their places before anybody serves them.
PLANNED: Final[tuple[ServiceDescriptor, ...]] = (
    tool_service_pb2.DESCRIPTOR.services_by_name["ToolService"],
    skill_service_pb2.DESCRIPTOR.services_by_name["SkillService"],
)


def add_routes(
    face: HttpFace, services: Iterable[ServiceDescriptor], servicers: Iterable[object]
) -> list[Binding]:
    """Serve every method that has a place; says which of them are answered by more than 'not served yet'."""
    every = {service.full_name: service for service in (*services, *PLANNED)}
    table = PolicyTable.from_services(*every.values())
    served = []
    for binding in bindings(*every.values()):
        row = table.row(method_path(binding.method))
        assert row is not None  # from_services refuses a method without
        behaviour = None if row.planned else _behaviour(binding, servicers)
        method = (Upload if binding.method.client_streaming else _Method)(face, binding, row, behaviour)
        face.app.router.add_route(binding.verb, binding.pattern, method.serve)
        if behaviour is not None:
            served.append(binding)
    return served


def _behaviour(binding: Binding, servicers: Iterable[object]) -> Callable[[Any, Any], Any] | None:
    """The handler's bound method; the generated stub's own is none."""
    base = f"{binding.method.containing_service.name}Servicer"
    for servicer in servicers:
        if any(kind.__name__ == base for kind in type(servicer).__mro__):
            found: Any = getattr(servicer, binding.method.name)
            if inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found):
                return found  # type: ignore[no-any-return]  # looked up by name
    return None


class _Method:
    """One method over HTTP."""

    def __init__(
        self, face: HttpFace, binding: Binding, row: Row, behaviour: Callable[[Any, Any], Any] | None
    ) -> None:
        self._peers = face.peers
        self._binding = binding
        self._streams = binding.method.server_streaming
        self._guarded = GuardedMethod(row, behaviour, Decoder(binding), face.guards, request_streaming=False)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        asked = await self._asked(request)
        if self._streams:
            return await self._serve_stream(request, asked)
        return answers.document(await self._guarded.call(asked, HttpContext(request, self._peers)))

    async def _serve_stream(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        stream = answers.Stream(request)
        try:
            await self._guarded.call(asked, HttpContext(request, self._peers, stream.write))
        except Aborted as error:
            if not stream.begun:
                raise
            return await stream.fail(error.status)
        return await stream.end()

    async def _asked(self, request: web.Request) -> Asked:
        body = await read_body(request) if request.body_exists else b""
        if body and request.content_type != JSON:
            raise web.HTTPUnsupportedMediaType(reason=f"the body must be {JSON}")
        return asked_of(request, body)
