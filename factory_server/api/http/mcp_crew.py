"""A whole crew as one MCP server: its tools under public names, from the registry; calls go on to their agents.

Only tools are gathered. Resources and prompts have names that agents choose alike and URIs that clients must take
as they are: they are at the agents' own endpoints.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from factory_server.api.http.app import read_body
from factory_server.api.http.mcp_lists import EncodedLists
from factory_server.api.http.relay import OURS, Relay, carried, hostname, relayed
from factory_server.core import model, tools
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import FactoryError, NotFound
from factory_server.core.tools import Entry
from factory_server.services.tools import ToolRegistry
from factory_server.services.watch import STREAM_AGE_MAX_S
from wire.mcp import checks, forms, messages
from wire.mcp.errors import (
    McpError,
    bad_request,
    from_native,
    header_mismatch,
    invalid_params,
    unknown_method,
)
from wire.mcp.messages import Id, Json, Notification, Request
from wire.mcp.revisions import (
    CANCELLED,
    HANDSHAKE,
    META_SERVER_INFO,
    NAME_HEADER,
    PATH,
    SESSION_HEADER,
    STATELESS,
    SUPPORTED,
    TOOLS_CHANGED,
    VERSION_HEADER,
)
from wire.policy import Caller, current_caller

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
CAPABILITIES: Final[Json] = {"tools": {"listChanged": True}}
LIST_TTL_MS: Final = 5000
KEEP_ALIVE_S: Final = 15.0
CALLS_MAX: Final = 10_000
"""Calls in flight that a later message may cancel."""
COMMENT: Final = b":\n\n"
ALL: Final = model.Page(1)
NO_CREW: Final = 404

CallKey = tuple[str, str, Id]
"""Who calls, in which session, by which request."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request, its envelope checked."""

    http: web.Request
    crew: str
    caller: Caller
    found: Json
    message: Request
    headers: Mapping[str, str]
    stateless: bool


class CrewEndpoint:
    """The endpoint of every crew."""

    def __init__(
        self, registry: ToolRegistry, relay: Relay, codec: CursorCodec, draining: asyncio.Event
    ) -> None:
        self._registry = registry
        self._relay = relay
        self._lists = EncodedLists(codec)
        self._draining = draining
        self._running: dict[CallKey, asyncio.Event] = {}

    async def post(self, request: web.Request) -> web.StreamResponse:
        """One message."""
        _check_front(request)
        if request.content_type != JSON:
            raise web.HTTPUnsupportedMediaType(reason="a message is application/json")
        body = await read_body(request)
        crew, caller = request.match_info["crew"], current_caller()
        try:
            found = messages.load(body)
            message = messages.from_json(found)
        except McpError as error:
            return _json(messages.error(messages.id_in(body), error), error.status)
        if not isinstance(message, Request):
            self._told(request, caller, message)
            return web.Response(status=202)
        headers = _headers(request)
        asked = _Asked(request, crew, caller, found, message, headers, checks.is_stateless(headers, message))
        try:
            return await self._request(asked)
        except (McpError, FactoryError) as error:
            wrong = error if isinstance(error, McpError) else from_native(error)
            status = wrong.status if asked.stateless or wrong.status in (400, NO_CREW) else 200
            return _json(messages.error(message.id, wrong), status)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """The handshake era's stream: the list changed."""
        _check_front(request)
        if request.headers.get(VERSION_HEADER) == STATELESS:
            raise web.HTTPMethodNotAllowed("GET", ["POST"])
        if EVENTS not in request.headers.get("accept", ""):
            raise web.HTTPNotAcceptable(reason="the stream is text/event-stream")
        await self._known(request.match_info["crew"], current_caller())
        changed = messages.event(messages.notification(TOOLS_CHANGED))
        return await self._stream(request, current_caller(), COMMENT, changed)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """The client ends its session: nothing is kept of it."""
        if SESSION_HEADER not in request.headers:
            raise web.HTTPMethodNotAllowed("DELETE", ["POST", "GET"])
        return web.Response(status=204)

    async def _request(self, asked: _Asked) -> web.StreamResponse:
        if asked.stateless:
            checks.check_stateless(asked.headers, asked.message)
        await self._known(asked.crew, asked.caller)
        match asked.message.method, asked.stateless:
            case "tools/list", _:
                return self._list(asked)
            case "tools/call", _:
                return await self._call(asked)
            case "server/discover", True:
                return _result(asked, discovered(asked.crew))
            case "subscriptions/listen", True:
                return await self._listen(asked)
            case "initialize", False:
                return _initialized(asked)
            case "ping", False:
                return _result(asked, {})
            case method, _:
                raise unknown_method(method)

    async def _known(self, crew: str, caller: Caller) -> None:
        """NotFound for a crew that is none."""
        if self._registry.of_crew(crew):
            return
        try:
            await self._registry.list(crew, "", caller.scopes, ALL)
        except NotFound as error:
            wrong = from_native(error)
            raise McpError(wrong.code, wrong.message, wrong.data, NO_CREW) from error

    def _list(self, asked: _Asked) -> web.Response:
        """The list, joined from bytes that stand ready."""
        known = self._registry.of_crew(asked.crew)
        listed, cursor = self._lists.page(
            asked.crew, known, asked.caller.scopes, asked.message.params.get("cursor")
        )
        rest: Json = {"nextCursor": cursor} if cursor else {}
        if asked.stateless:
            rest |= {"ttlMs": LIST_TTL_MS, "cacheScope": forms.CACHE_SCOPE, "resultType": "complete"}
            rest["_meta"] = {META_SERVER_INFO: server_info(asked.crew)}
        members = messages.encode(rest)[1:]
        result = b'{"tools":' + listed + (b"," if rest else b"") + members
        identifier = messages.encode({"id": asked.message.id})[1:-1]
        body = b'{"jsonrpc":"2.0",' + identifier + b',"result":' + result + b"}"
        return web.Response(body=body, content_type=JSON)

    async def _call(self, asked: _Asked) -> web.StreamResponse:
        """Pass a call on under the name that its agent knows. What the body names is what is authorised."""
        entry = self._allowed(asked)
        found = {**asked.found, "params": {**asked.found["params"], "name": entry.tool.name}}
        named = checks.encoded(entry.tool.name).encode()
        call = carried(
            asked.http, PATH, asked.caller, messages.encode(found), {NAME_HEADER.encode(): named}
        ).without(SESSION_HEADER.encode())
        session = asked.headers.get(SESSION_HEADER)
        if session is None or asked.stateless or len(self._running) >= CALLS_MAX:
            return await relayed(asked.http, await self._relay.ask(entry.agent, call.to))
        key = (asked.caller.spiffe, session, asked.message.id)
        return await self._cancellable(asked, key, entry, call.to)

    def _allowed(self, asked: _Asked) -> Entry:
        """The tool that the body names; `McpError` for an unknown one, for a header that says otherwise, and
        beyond the scope."""
        name = asked.message.params.get("name")
        if not isinstance(name, str):
            raise invalid_params("params.name is required, a string")
        header = asked.headers.get(NAME_HEADER)
        if header is not None and checks.decoded(header) != name:
            raise header_mismatch(f"Mcp-Name is not the body's '{name[:128]}'")
        entry = self._registry.of_crew(asked.crew).get(name)
        if entry is None:
            raise invalid_params(f"unknown tool '{name[:128]}'")
        tools.check_use(name, entry.tool, asked.caller.scopes)
        return entry

    async def _cancellable(
        self, asked: _Asked, key: CallKey, entry: Entry, message: Any
    ) -> web.StreamResponse:
        """A call of the handshake era: another message of its session may cancel it."""
        cancelled = self._running.setdefault(key, asyncio.Event())

        async def work() -> web.StreamResponse:
            return await relayed(asked.http, await self._relay.ask(entry.agent, message))

        try:
            async with asyncio.TaskGroup() as group:
                working = group.create_task(work(), name=f"mcp call {entry.agent}")
                waiting = group.create_task(cancelled.wait(), name="mcp cancelled")
                await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not working.done():
                    working.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._running.pop(key, None)
        return _cut_off(asked.http) if working.cancelled() else working.result()

    def _told(self, request: web.Request, caller: Caller, message: messages.Message) -> None:
        """A notification; the answer to a question would be to one that we never ask."""
        if isinstance(message, messages.Response):
            raise bad_request("nobody asked")
        session = request.headers.get(SESSION_HEADER)
        if isinstance(message, Notification) and message.method == CANCELLED and session is not None:
            identifier = message.params.get("requestId")
            running = self._running.get((caller.spiffe, session, identifier)) if identifier else None
            if running is not None:
                running.set()

    async def _listen(self, asked: _Asked) -> web.StreamResponse:
        identifier = asked.message.id
        wanted = forms.listenable(asked.message.params.get("notifications"), ("toolsListChanged",))
        first = messages.event(forms.acknowledged(identifier, wanted))
        changed = messages.event(forms.subscribed(TOOLS_CHANGED, identifier)) if wanted else b""
        return await self._stream(asked.http, asked.caller, first, changed)

    async def _stream(
        self, request: web.Request, caller: Caller, first: bytes, changed: bytes
    ) -> web.StreamResponse:
        """Tell of each change of what the caller may see; many at once are told once."""
        response = web.StreamResponse(headers={"Content-Type": EVENTS, "X-Accel-Buffering": "no"})
        crew = request.match_info["crew"]
        watching = self._registry.watch(crew, caller.scopes, bookmark_s=KEEP_ALIVE_S, draining=self._draining)
        async with aclosing(watching):
            async for change in watching:
                if change.synced:  # from here on nothing is missed
                    break
            await response.prepare(request)
            await response.write(first)
            try:
                async with asyncio.timeout(STREAM_AGE_MAX_S):
                    async for change in watching:
                        await response.write(
                            changed or COMMENT if change.upserted or change.removed else COMMENT
                        )
            except TimeoutError:
                pass  # the client listens again
        await response.write_eof()
        return response


def server_info(crew: str) -> Json:
    """Who serves."""
    return {"name": f"hyperfactory/{crew}", "version": "1"}


def discovered(crew: str) -> Json:
    """What a crew's endpoint can."""
    return forms.cached({"supportedVersions": list(SUPPORTED), "capabilities": CAPABILITIES})


def _cut_off(request: web.Request) -> web.Response:
    """The answer to a request that the client does not want any more; one that has begun just ends."""
    if request.writer.output_size > 0:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError("the client has cancelled its request")
    return web.Response(status=202)


def _initialized(asked: _Asked) -> web.Response:
    version = asked.message.params.get("protocolVersion")
    if not isinstance(version, str):
        raise invalid_params("initialize needs protocolVersion")
    result: Json = {
        "protocolVersion": version if version in HANDSHAKE else HANDSHAKE[0],
        "capabilities": CAPABILITIES,
        "serverInfo": server_info(asked.crew),
    }
    return _json(messages.result(asked.message.id, result), headers={SESSION_HEADER: secrets.token_hex(16)})


def _result(asked: _Asked, value: Json) -> web.Response:
    revision = STATELESS if asked.stateless else HANDSHAKE[0]
    return _json(messages.result(asked.message.id, forms.complete(value, revision, server_info(asked.crew))))


def _json(message: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=messages.encode(message), content_type=JSON, headers=dict(headers or {})
    )


def _headers(request: web.Request) -> dict[str, str]:
    """By lower-case name; one that came twice is joined, so that it is what neither of them says."""
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        lower = name.lower()
        found[lower] = f"{found[lower]}, {value}" if lower in found else value
    return found


def _check_front(request: web.Request) -> None:
    """Refuse a foreign host, as a rebound DNS name would be, and a foreign origin."""
    if hostname(b"//" + request.headers.get("host", "").encode()) not in OURS:
        raise web.HTTPMisdirectedRequest(reason="the request is for another host")
    origin = request.headers.get("origin")
    if origin is not None and hostname(origin.encode()) not in OURS:
        raise web.HTTPForbidden(reason="the request is from a foreign origin")
