"""A whole crew as one MCP server: tools under public names and skill packs under their digests, from what the
factory knows, so that no list asks an agent; calls go on to their agents.

Other resources, and prompts, are at the agents' own endpoints: agents do not report them, so that a list would
have to ask each of them, and URIs such as `file:///…`, chosen alike, mean something to their agent alone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from factory_server.api.http.app import read_body
from factory_server.api.http.mcp_agents import AgentSessions
from factory_server.api.http.mcp_asked import (
    JSON,
    Asked,
    check_front,
    cut_off,
    headers_of,
    in_json,
    result,
    server_info,
)
from factory_server.api.http.mcp_calls import Calls
from factory_server.api.http.mcp_listen import Streams
from factory_server.api.http.mcp_lists import EncodedLists
from factory_server.api.http.mcp_sessions import Session, Sessions
from factory_server.api.http.mcp_skills import Skills
from factory_server.api.http.relay import EVENTS, Relay
from factory_server.core import model
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import FactoryError, NotFound
from factory_server.core.lifecycle import AgentState
from factory_server.services.registry import RegistryFeed
from factory_server.services.tools import ToolRegistry
from factory_server.services.tools_packs import Library
from wire.mcp import checks, forms, messages
from wire.mcp.errors import McpError, bad_request, from_native, invalid_params, unknown_method
from wire.mcp.messages import Json, Notification, Request, Response
from wire.mcp.revisions import (
    CANCELLED,
    LOG_LEVELS,
    META_SERVER_INFO,
    SESSION_HEADER,
    SKILLS_EXTENSION,
    STATELESS,
    SUPPORTED,
    VERSION_HEADER,
)
from wire.policy import Caller, current_caller

CAPABILITIES: Final[Json] = {
    "tools": {"listChanged": True},
    "resources": {"listChanged": True},
    "extensions": {SKILLS_EXTENSION: {}},
}
LIST_TTL_MS: Final = 5000
BAD_REQUEST: Final = 400
NO_CREW: Final = 404


class CrewEndpoint:
    """The endpoint of every crew."""

    def __init__(
        self,
        registry: ToolRegistry,
        library: Library,
        relay: Relay,
        codec: CursorCodec,
        draining: asyncio.Event,
    ) -> None:
        self._registry = registry
        self._lists = EncodedLists(codec)
        self._skills = Skills(registry.packs, library, codec)
        self._streams = Streams(registry, draining)
        self._at_agents = AgentSessions(relay)
        self._sessions = Sessions(self._at_agents.forget)
        self._calls = Calls(registry, relay, self._at_agents)

    def follow(self, agents: RegistryFeed) -> None:
        """Forget what stands behind agents that are gone, and sessions with crews that are gone."""

        def moved(agent: model.AgentRow) -> None:
            if agent.state is not AgentState.STOPPED:
                return
            self._at_agents.forget_agent(agent.id)
            if self._sessions.of_crew(agent.crew) and not any(
                row.crew == agent.crew for row in agents.names().values()
            ):
                self._sessions.end_crew(agent.crew)

        agents.on_change.append(moved)

    def counts(self) -> tuple[int, int]:
        """Sessions of clients, and those at agents behind them."""
        return len(self._sessions), len(self._at_agents)

    async def post(self, request: web.Request) -> web.StreamResponse:
        """One message."""
        check_front(request)
        if request.content_type != JSON:
            raise web.HTTPUnsupportedMediaType(reason="a message is application/json")
        body = await read_body(request)
        crew, caller = request.match_info["crew"], current_caller()
        try:
            found = messages.load(body)
            message = messages.from_json(found)
        except McpError as error:
            return in_json(messages.error(messages.id_in(body), error), error.status)
        headers = headers_of(request)
        if not isinstance(message, Request):
            await self._told(self._session(request, caller), caller, found, message)
            return web.Response(status=202)
        stateless = checks.is_stateless(headers, message)
        begins = stateless or message.method == "initialize"
        session = None if begins else self._session(request, caller)
        asked = Asked(request, crew, caller, found, message, headers, stateless, session)
        try:
            return await self._request(asked)
        except (McpError, FactoryError) as error:
            cut_off(request)
            wrong = error if isinstance(error, McpError) else from_native(error)
            status = wrong.status if stateless or wrong.status in (BAD_REQUEST, NO_CREW) else 200
            return in_json(messages.error(message.id, wrong), status)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """The handshake era's stream: a list changed."""
        check_front(request)
        if request.headers.get(VERSION_HEADER) == STATELESS:
            raise web.HTTPMethodNotAllowed("GET", ["POST"])
        if EVENTS not in request.headers.get("accept", ""):
            raise web.HTTPNotAcceptable(reason="the stream is text/event-stream")
        crew, caller = request.match_info["crew"], current_caller()
        self._session(request, caller)
        await self._known(crew)
        return await self._streams.of_session(request, crew, caller)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """The client ends its session."""
        check_front(request)
        session = self._session(request, current_caller())
        if session is None:
            raise web.HTTPMethodNotAllowed("DELETE", ["POST", "GET"])
        behind = list(session.at_agents.values())
        self._sessions.end(session)
        await self._at_agents.end(behind)
        return web.Response(status=204)

    def _session(self, request: web.Request, caller: Caller) -> Session | None:
        """The session that a request names; without a name there is none."""
        identifier = request.headers.get(SESSION_HEADER)
        if identifier is None:
            return None
        session = self._sessions.get(identifier, caller.spiffe, request.match_info["crew"])
        if session is None:
            raise web.HTTPNotFound(reason="there is no such session; begin a new one")
        return session

    async def _request(self, asked: Asked) -> web.StreamResponse:
        if asked.stateless:
            checks.check_stateless(asked.headers, asked.message)
        await self._known(asked.crew)
        match asked.message.method, asked.stateless:
            case "tools/list", _:
                return self._list(asked)
            case "tools/call", _:
                return await self._calls.call(asked)
            case "skills/list", _:
                return result(asked, await self._skills.list(asked))
            case "skills/get", _:
                return result(asked, await self._skills.get(asked))
            case "resources/list", _:
                return result(asked, await self._skills.resources(asked))
            case "resources/templates/list", _:
                return result(asked, forms.cached({"resourceTemplates": []}))
            case "resources/read", _:
                return result(asked, await self._skills.read(asked))
            case "server/discover", True:
                return result(asked, discovered())
            case "subscriptions/listen", True:
                return await self._streams.listen(asked)
            case "initialize", False:
                return self._begun(asked)
            case "logging/setLevel", False:
                return _levelled(asked)
            case "ping", False:
                return result(asked, {})
            case method, _:
                raise unknown_method(method)

    async def _known(self, crew: str) -> None:
        """NotFound for a crew that is none. One that is fresh is known when all have said what they offer."""
        try:
            await self._registry.spoken(crew)
        except NotFound as error:
            wrong = from_native(error)
            raise McpError(wrong.code, wrong.message, wrong.data, NO_CREW) from error

    def _list(self, asked: Asked) -> web.Response:
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
        body = b'{"tools":' + listed + (b"," if rest else b"") + members
        identifier = messages.encode({"id": asked.message.id})[1:-1]
        whole = b'{"jsonrpc":"2.0",' + identifier + b',"result":' + body + b"}"
        return web.Response(body=whole, content_type=JSON)

    def _begun(self, asked: Asked) -> web.Response:
        """A session, in which agents may ask back what the client says it can."""
        session = self._sessions.begin(asked.caller.spiffe, asked.crew, asked.message.params)
        said: Json = {
            "protocolVersion": session.revision,
            "capabilities": {**CAPABILITIES, "logging": {}},
            "serverInfo": server_info(asked.crew),
        }
        return in_json(messages.result(asked.message.id, said), headers={SESSION_HEADER: session.id})

    async def _told(
        self, session: Session | None, caller: Caller, found: Json, message: Notification | Response
    ) -> None:
        """A notification, or the answer to a question."""
        match message:
            case Response():
                if session is None:
                    raise bad_request("nobody asked: there is no session")
                await self._calls.answer(session, caller, found, message)
            case Notification(method, params) if method == CANCELLED and session is not None:
                session.cancel(params.get("requestId"))
            case _:
                pass


def discovered() -> Json:
    """What a crew's endpoint can."""
    return forms.cached({"supportedVersions": list(SUPPORTED), "capabilities": CAPABILITIES})


def _levelled(asked: Asked) -> web.Response:
    """Agents are told with the next call of theirs."""
    level: Any = asked.message.params.get("level")
    if level not in LOG_LEVELS:
        raise invalid_params(f"params.level is one of {', '.join(LOG_LEVELS)}")
    if asked.session is not None:
        asked.session.level = level
    return result(asked, {})
