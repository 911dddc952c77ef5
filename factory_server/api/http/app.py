"""The HTTP application: every route behind the guard, every failure a status in JSON, every answer with an id.

Route modules hang themselves in with `add_routes(face, …)`, which calls `face.add(verb, path, handler, row)`: the
handler runs when the row let the caller in; `wire.policy.current_caller()` says who it is, native errors become
statuses, `{crew}` and `{agent}` in the path are what the row's resource rule is about.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from factory_server.api.http.context import HttpContext, Peers
from factory_server.api.http.failures import Aborted, refusal, response, unserved
from wire.channels import SERVER_MESSAGE_MAX_BYTES
from wire.errors import FactoryError
from wire.guarded import GuardedMethod, Guards
from wire.policy import Principal, Row
from wire.status import to_status

log = logging.getLogger("factory.http")

BODY_MAX_BYTES: Final = SERVER_MESSAGE_MAX_BYTES
BODY_MAX_S: Final = 30.0
REQUEST_ID: Final = "X-Request-Id"
_REQUEST_ID_RE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_KEY_RE = re.compile(r"[\x21-\x7e]{1,64}")
_ID_KEY: Final = web.RequestKey("id", str)
KEY_HEADER: Final = "Idempotency-Key"
KEY: Final = web.RequestKey("idempotency key", str)
"""The id that makes a repetition harmless, as the caller or we chose it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request as the guard sees it: whose resources it is about, and the request itself."""

    http: web.Request
    crew: str = ""
    agent: str = ""


def anybody(path: str, verb: str = "GET") -> Row:
    """The row of what whoever has a certificate of ours may read: no token is asked for."""
    return Row(f"{verb} {path}", frozenset(Principal), default_deadline_s=5.0, ours=False)


class HttpFace:
    """The application, and how routes are added to it before it is served."""

    def __init__(self, guards: Guards, draining: asyncio.Event) -> None:
        self.guards = guards
        self.draining = draining
        self.peers = Peers()
        self.app = web.Application(middlewares=[_answer], client_max_size=BODY_MAX_BYTES)
        self.app.on_response_prepare.append(_prepared)

    def add(self, verb: str, path: str, handler: Handler, row: Row) -> None:
        """Serve `path` by `handler` for whom `row` lets in."""
        guarded = GuardedMethod(row, _behaviour(handler), None, self.guards, request_streaming=False)

        async def serve(request: web.Request) -> web.StreamResponse:
            match = request.match_info
            arrived = Arrived(request, match.get("crew", ""), match.get("agent", ""))
            answer: web.StreamResponse = await guarded.call(arrived, HttpContext(request, self.peers))
            return answer

        self.app.router.add_route(verb, path, serve)


def _behaviour(handler: Handler) -> Callable[[Arrived, Any], Awaitable[web.StreamResponse]]:
    async def behave(arrived: Arrived, _context: Any) -> web.StreamResponse:
        try:
            return await handler(arrived.http)
        except web.HTTPException as answer:
            return refusal(answer.status, answer.reason)

    return behave


async def read_body(request: web.Request) -> bytes:
    """The whole body. Too long, too slow, broken off or compressed is refused as HTTP does."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType(reason="compressed bodies are not taken")
    try:
        async with asyncio.timeout(BODY_MAX_S):
            return await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason=f"the body did not come within {BODY_MAX_S:g} s") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise web.HTTPRequestEntityTooLarge(
            BODY_MAX_BYTES, reason=f"the body is longer than {BODY_MAX_BYTES} bytes"
        ) from error
    except web.RequestPayloadError as error:
        raise web.HTTPBadRequest(reason="the body is broken") from error


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever ends a request into an answer; what has begun to be answered is cut off instead."""
    given = request.headers.get(REQUEST_ID, "")
    request[_ID_KEY] = given if _REQUEST_ID_RE.fullmatch(given) else secrets.token_hex(8)
    try:
        return await handler(request)
    except Aborted as error:
        return _whole(request, response(error.status))
    except FactoryError as error:
        return _whole(request, response(to_status(error)))
    except web.HTTPException as error:
        return unserved(request.method, error)


def _whole(request: web.Request, answer: web.Response) -> web.Response:
    """The answer, unless another one is on its way: that one must not look complete."""
    if request.writer.output_size > 0:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError("the answer had begun")
    return answer


async def _prepared(request: web.Request, answer: web.StreamResponse) -> None:
    """What every answer carries."""
    answer.headers.setdefault(REQUEST_ID, request.get(_ID_KEY, "") or secrets.token_hex(8))
    if _KEY_RE.fullmatch(request.get(KEY, "")):
        answer.headers.setdefault(KEY_HEADER, request[KEY])
    answer.headers.setdefault("Cache-Control", "no-store")
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    answer.headers.pop("Server", None)
