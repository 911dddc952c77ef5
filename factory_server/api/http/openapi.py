"""`/openapi.json`: the HTTP face as OpenAPI 3.1, from the same descriptors that serve it, and the rest beside."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from google.rpc import status_pb2

from factory_server.api.http import openapi_more
from factory_server.api.http.answers import EVENTS, LINES
from factory_server.api.http.app import KEY_HEADER, REQUEST_ID
from factory_server.api.http.bindings import WHOLE, Binding
from factory_server.api.http.failures import JSON
from factory_server.api.http.schemas import Json, Schemas, comments
from factory_server.api.http.uploads import BYTES
from hyperfactory.v1 import options_pb2

PATH: Final = "/openapi.json"
VERSION: Final = "v1"
_REFUSED: Final = {
    "description": "Refused.",
    "content": {JSON: {"schema": {"$ref": "#/components/schemas/Status"}}},
}
_FAILED: Final = _REFUSED | {"description": "Failed; nothing is said of the effect."}


def document(served: Iterable[Binding]) -> bytes:
    """The whole document."""
    schemas = Schemas()
    schemas.message(status_pb2.Status.DESCRIPTOR, given=False)
    paths: dict[str, Json] = {}
    services: dict[str, str] = {}
    for binding in served:
        service = binding.method.containing_service
        services[service.name] = comments().get(service.full_name, "")
        paths.setdefault(binding.path, {})[binding.verb.lower()] = _operation(binding, schemas)
    body = {
        "openapi": "3.1.0",
        "info": {
            "title": "Hyper Agent Factory",
            "version": VERSION,
            "description": "The contract `hyperfactory.v1` over HTTP/1.1 (proto3 JSON).",
        },
        "servers": [{"url": "/"}],
        "security": [{"certificate": [], "token": []}],
        "tags": [{"name": name, "description": text} for name, text in services.items()]
        + list(openapi_more.TAGS),
        "paths": paths | openapi_more.paths(),
        "components": {
            "schemas": dict(sorted((schemas.components | openapi_more.components()).items())),
            "securitySchemes": {
                "certificate": {"type": "mutualTLS"},
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
        },
    }
    return json.dumps(body, ensure_ascii=False).encode()


def _operation(binding: Binding, schemas: Schemas) -> Json:
    method = binding.method
    text = comments().get(method.full_name, "")
    policy = method.GetOptions().Extensions[options_pb2.policy]
    operation: Json = {
        "operationId": f"{method.containing_service.name}_{method.name}",
        "tags": [method.containing_service.name],
        "summary": text.split(". ")[0].rstrip("."),
        "description": text,
        "parameters": _parameters(binding, schemas),
        "responses": {"200": _answer(binding, schemas), "4XX": _REFUSED, "5XX": _FAILED},
        "x-principals": [
            options_pb2.Principal.Name(p).removeprefix("PRINCIPAL_").lower() for p in policy.principals
        ],
        "x-scopes": list(policy.scopes),
    }
    if method.server_streaming:
        operation["x-stream"] = True
    if (body := _body(binding, schemas)) is not None:
        operation["requestBody"] = body
    return operation


def _principal(number: Any) -> str:
    return options_pb2.Principal.Name(number).removeprefix("PRINCIPAL_").lower()


def _parameters(binding: Binding, schemas: Schemas) -> list[Json]:
    found = [_path_parameter(binding, variable.field, schemas) for variable in binding.variables]
    needed = schemas.needed(binding.told)
    for name, way in binding.query().items():
        schema = schemas.field(way[-1], given=True)
        text = schema.pop("description", "")
        found.append(
            {
                "name": name,
                "in": "query",
                "required": len(way) == 1 and way[0].name in needed,
                "description": text,
                "schema": schema,
            }
        )
    if binding.takes_key():
        schema = {"type": "string", "format": "uuid"}
        text = "The request_id: the same key with the same request has one effect in 24 h. Made if absent."
        found.append(_header(KEY_HEADER, text, schema))
    if binding.takes_cursor():
        text = "The id of the last event seen: the stream goes on after it."
        found.append(_header("Last-Event-ID", text, {"type": "string", "maxLength": 1024}))
    return found


def _path_parameter(binding: Binding, path: str, schemas: Schemas) -> Json:
    kind: Any = binding.method.input_type
    *parents, name = path.split(".")
    for parent in parents:
        kind = kind.fields_by_name[parent].message_type
    schema = schemas.field(kind.fields_by_name[name], given=True)
    text = schema.pop("description", "")
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def _header(name: str, text: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _body(binding: Binding, schemas: Schemas) -> Json | None:
    if not binding.body:
        return None
    kind: Any = binding.method.input_type
    if binding.method.client_streaming:
        return {"required": True, "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
    if binding.body == WHOLE:
        without = frozenset({"request_id", *(variable.field for variable in binding.variables)})
        schema = schemas.object(kind, given=True, without=without)
    else:
        schema = schemas.field(kind.fields_by_name[binding.body], given=True)
    return {"required": "required" in schema or "$ref" in schema, "content": {JSON: {"schema": schema}}}


def _answer(binding: Binding, schemas: Schemas) -> Json:
    schema = schemas.message(binding.method.output_type, given=False)
    headers = {REQUEST_ID: {"schema": {"type": "string"}, "description": "The request's id in our logs."}}
    if not binding.method.server_streaming:
        return {"description": "Done.", "headers": headers, "content": {JSON: {"schema": schema}}}
    lines = 'One message a line; a last line `{"error": Status}` where the stream ends in error.'
    events = "One event a message, its id the cursor; an event `error` with a Status where it ends in error."
    return {
        "description": f"A stream. {LINES}: {lines} {EVENTS}: {events}",
        "headers": headers,
        "content": {LINES: {"schema": schema}, EVENTS: {"schema": {"type": "string"}}},
    }
