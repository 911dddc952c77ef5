"""A request to a crew's endpoint whose envelope is checked, and the forms of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from factory_server.api.http.mcp_sessions import Session
from factory_server.api.http.relay import OURS, hostname
from wire.mcp import forms, messages
from wire.mcp.messages import Json, Request
from wire.mcp.revisions import HANDSHAKE, STATELESS
from wire.policy import Caller

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    http: web.Request
    crew: str
    caller: Caller
    found: Json
    message: Request
    headers: Mapping[str, str]
    stateless: bool
    session: Session | None


def server_info(crew: str) -> Json:
    """Who serves."""
    return {"name": f"hyperfactory/{crew}", "version": "1"}


def result(asked: Asked, value: Json) -> web.Response:
    """The last word, as the request's era writes it."""
    revision = STATELESS if asked.stateless else HANDSHAKE[0]
    return in_json(
        messages.result(asked.message.id, forms.complete(value, revision, server_info(asked.crew)))
    )


def in_json(message: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """One message."""
    return web.Response(
        status=status, body=messages.encode(message), content_type=JSON, headers=dict(headers or {})
    )


def cut_off(request: web.Request) -> None:
    """Nothing, where no answer has begun; one that has must not look complete."""
    if request.writer.output_size > 0:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError("the answer had begun")


def headers_of(request: web.Request) -> dict[str, str]:
    """By lower-case name; one that came twice is joined, so that it is what neither of them says."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        lower = name.lower()
        found[lower] = f"{found[lower]}, {value}" if lower in found else value
    return found


def check_front(request: web.Request) -> None:
    """Refuse a foreign host, as a rebound DNS name would be, and a foreign origin."""
    if hostname(b"//" + request.headers.get("host", "").encode()) not in OURS:
        raise web.HTTPMisdirectedRequest(reason="the request is for another host")
    origin = request.headers.get("origin")
    if origin is not None and hostname(origin.encode()) not in OURS:
        raise web.HTTPForbidden(reason="the request is from a foreign origin")
