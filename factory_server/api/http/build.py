"""Put the routes of the HTTP face together."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Final

from aiohttp import web

from factory_server.api.http import openapi, rest
from factory_server.api.http.app import HttpFace, anybody
from factory_server.api.http.bindings import Binding
from factory_server.api.http.failures import JSON
from factory_server.api.server import DESCRIPTORS, Servicers
from wire.guarded import Guards

JWKS_PATH: Final = "/.well-known/jwks.json"


def build_face(
    guards: Guards, servicers: Servicers, draining: asyncio.Event, jwks: Callable[[], str]
) -> HttpFace:
    """The face with every route, not yet listening."""
    face = HttpFace(guards, draining)
    _add_keys(face, jwks)
    served = rest.add_routes(
        face, DESCRIPTORS, [getattr(servicers, field.name) for field in fields(servicers)]
    )
    _add_document(face, served)
    return face


def _add_document(face: HttpFace, served: Sequence[Binding]) -> None:
    """The description of the REST face; made when it is first asked for."""

    @functools.cache
    def made() -> bytes:
        return openapi.document(served)

    async def describe(_request: web.Request) -> web.Response:
        return web.Response(body=made(), content_type=JSON)

    face.add("GET", openapi.PATH, describe, anybody(openapi.PATH))


def _add_keys(face: HttpFace, jwks: Callable[[], str]) -> None:
    """The keys that check tokens, where verifiers look for them."""

    async def keys(_request: web.Request) -> web.Response:
        return web.Response(body=jwks().encode(), content_type=JSON)

    face.add("GET", JWKS_PATH, keys, anybody(JWKS_PATH))
