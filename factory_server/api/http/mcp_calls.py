"""Calls of a crew's tools: passed on under the names that their agents know, cancelled, asked back."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from factory_server.api.http.mcp_agents import AgentSessions
from factory_server.api.http.mcp_asked import Asked, cut_off
from factory_server.api.http.mcp_questions import Questions
from factory_server.api.http.mcp_sessions import Session
from factory_server.api.http.relay import Carried, Relay, carried, relayed
from factory_server.core import tools
from factory_server.core.tools import Entry
from factory_server.services.tools import ToolRegistry
from wire.mcp import checks, messages
from wire.mcp.errors import header_mismatch, invalid_params
from wire.mcp.messages import Json, Response
from wire.mcp.revisions import NAME_HEADER, PATH, SESSION_HEADER
from wire.policy import Caller

SESSION: Final = frozenset({SESSION_HEADER})


class Calls:
    """Those of every crew's tools."""

    def __init__(self, registry: ToolRegistry, relay: Relay, at_agents: AgentSessions) -> None:
        self._registry = registry
        self._relay = relay
        self._at_agents = at_agents

    async def call(self, asked: Asked) -> web.StreamResponse:
        """Pass a call on. What the body names is what is authorised, and what the agent gets."""
        entry = self._allowed(asked)
        found = {**asked.found, "params": {**asked.found["params"], "name": entry.tool.name}}
        named = checks.encoded(entry.tool.name).encode()
        body = messages.encode(found)
        call = carried(asked.http, PATH, asked.caller, body, {NAME_HEADER.encode(): named})
        if asked.session is None:
            call = call.without(SESSION_HEADER.encode())
            return await relayed(asked.http, await self._relay.ask(entry.agent, call.to))
        return await self._cancellable(asked, asked.session, entry, call)

    async def answer(self, session: Session, caller: Caller, found: Json, response: Response) -> None:
        """Bring an answer to the agent that asked; one that nobody waits for any more is dropped."""
        question = session.answered(response.id)
        if question is not None:
            await self._at_agents.answer(question.at, caller, {**found, "id": question.id})

    def _allowed(self, asked: Asked) -> Entry:
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
        self, asked: Asked, session: Session, entry: Entry, call: Carried
    ) -> web.StreamResponse:
        """A call of a session: another message of it may cancel it."""
        with session.running(asked.message.id) as cancelled:
            try:
                async with asyncio.TaskGroup() as group:
                    work = self._in_session(asked, session, entry, call)
                    working = group.create_task(work, name=f"mcp call {entry.agent}")
                    waiting = group.create_task(cancelled.wait(), name="mcp cancelled")
                    await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    if not working.done():
                        working.cancel()
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if working.cancelled():
            cut_off(asked.http)
            return web.Response(status=202)  # the client does not want it any more
        return working.result()

    async def _in_session(
        self, asked: Asked, session: Session, entry: Entry, call: Carried
    ) -> web.StreamResponse:
        if not session.tells_agents:
            call = call.without(SESSION_HEADER.encode())
            return await relayed(asked.http, await self._relay.ask(entry.agent, call.to), without=SESSION)
        answer, at = await self._at_agents.ask(session, entry.agent, asked.caller, call)
        at.calls += 1
        questions = Questions(session, at)
        try:
            return await relayed(asked.http, answer, questions.change, without=SESSION)
        finally:
            at.calls -= 1
            questions.end()
