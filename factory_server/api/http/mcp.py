"""MCP over HTTP: `/agents/{agent}/mcp` is the agent's own endpoint, `/crews/{crew}/mcp` a crew as one server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from factory_server.api.http.app import HttpFace, read_body
from factory_server.api.http.mcp_asked import cut_off
from factory_server.api.http.mcp_crew import CrewEndpoint
from factory_server.api.http.relay import Relay, carried, relayed
from factory_server.core import model
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import Denied, Exhausted, FactoryError, NotFound, Unavailable
from factory_server.services.call_rates import CallRates
from factory_server.services.parts import Parts
from factory_server.services.registry import RegistryFeed
from factory_server.services.tools import ToolRegistry
from factory_server.services.tools_packs import Library
from wire.mcp import messages
from wire.mcp.errors import McpError, from_native
from wire.mcp.revisions import PATH
from wire.policy import Caller, Principal, Resource, Row, current_caller
from wire.tokens import SCOPES

AGENT_PATH: Final = "/agents/{agent}/mcp"
CREW_PATH: Final = "/crews/{crew}/mcp"
VERBS: Final = ("POST", "GET", "DELETE")
CALLERS: Final = frozenset({Principal.OPERATOR, Principal.AGENT})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class McpUses:
    """The use cases behind MCP."""

    parts: Parts
    agents: RegistryFeed
    registry: ToolRegistry
    relay: Relay
    codec: CursorCodec
    draining: asyncio.Event
    rates: CallRates


def add_routes(face: HttpFace, uses: McpUses) -> CrewEndpoint:
    """Serve both paths. Whose agent it is, the agent's handler asks itself: its path names no crew."""
    agent = AgentEndpoint(uses)
    crew = CrewEndpoint(uses.registry, Library(uses.parts), uses.relay, uses.codec, uses.draining)
    crew.follow(uses.agents)
    whole = {"POST": crew.post, "GET": crew.get, "DELETE": crew.delete}
    for verb in VERBS:
        row = Row(f"{verb} {AGENT_PATH}", CALLERS, SCOPES)
        face.add(verb, AGENT_PATH, said_in_json_rpc(limited(agent.serve, uses.rates)), row)
        row = Row(f"{verb} {CREW_PATH}", CALLERS, SCOPES, Resource.OWN_CREW)
        face.add(verb, CREW_PATH, said_in_json_rpc(limited(whole[verb], uses.rates)), row)
    return crew


def limited(handler: Handler, rates: CallRates) -> Handler:
    """The handler, no more often than a caller may. Each message counts as a call: which of them are, an agent's
    own endpoint knows when it has read them."""

    async def serve(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            rates.take(current_caller().spiffe)
        return await handler(request)

    return serve


def said_in_json_rpc(handler: Handler) -> Handler:
    """The handler, whose failures MCP's clients can read."""

    async def serve(request: web.Request) -> web.StreamResponse:
        later: dict[str, str] = {}
        try:
            return await handler(request)
        except FactoryError as error:
            wrong = from_native(error)
            status = 404 if isinstance(error, NotFound) else max(wrong.status, 400)
            if isinstance(error, Exhausted | Unavailable):
                later["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        except McpError as error:
            wrong, status = error, max(error.status, 400)
        cut_off(request)
        body = messages.encode(messages.error(None, wrong))
        return web.Response(status=status, body=body, headers=later, content_type="application/json")

    return serve


class AgentEndpoint:
    """One agent, as if its own endpoint were here."""

    def __init__(self, uses: McpUses) -> None:
        self._u = uses

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Whatever it is: the agent judges it."""
        caller = current_caller()
        agent = await self._agent(request.match_info["agent"])
        _check_crew(caller, agent)
        body = await read_body(request)
        call = carried(request, PATH, caller, body)
        return await relayed(request, await self._u.relay.ask(agent.id, call.to))

    async def _agent(self, ident: str) -> model.AgentRow:
        return self._u.agents.find(ident) or await self._u.parts.store.get_agent(ident)


def _check_crew(caller: Caller, agent: model.AgentRow) -> None:
    if caller.principal is Principal.AGENT and caller.crew != agent.crew:
        raise Denied(
            f"agent '{caller.agent}' may call agents of its own crew only", metadata={"method": AGENT_PATH}
        )
