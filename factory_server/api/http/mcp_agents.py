"""Sessions at agents behind those at a crew's endpoint: begun with the first call, as the client began its own.

So an agent knows exactly what the caller can, and asks it back on the call's stream. An agent may forget a session
(it was restarted, slept, or had too many): the call that finds that out did not begin, and a new session is begun.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from factory_server.api.http.mcp_asked import JSON
from factory_server.api.http.mcp_sessions import AgentSession, Session, crowd_first
from factory_server.api.http.relay import EVENTS, Carried, Relay
from factory_server.core import model
from factory_server.core.errors import Exhausted, FactoryError, Unavailable
from factory_server.upstream import Answer
from wire.identity import FACTORY_AUTHORITY
from wire.mcp import messages
from wire.mcp.errors import McpError
from wire.mcp.messages import Json
from wire.mcp.revisions import PATH, SESSION_HEADER, VERSION_HEADER
from wire.policy import Caller

log = logging.getLogger("factory.mcp")

OF_AGENT_MAX: Final = 48
"""Agents remember 64 sessions: some are left for those who come by the agent's own URL."""
OPEN_MAX_S: Final = 35.0
"""Longer than a sleeping agent may take to wake."""
TELL_MAX_S: Final = 10.0
END_MAX_S: Final = 2.0
TRIES_MAX: Final = 3
NOT_FOUND: Final = 404
REFUSED: Final = 300
"""Whatever status is not below it."""
SESSION: Final = SESSION_HEADER.encode()


class _ForgottenError(Unavailable):
    """The agent does not know the session any more."""


class AgentSessions:
    """All of them; per agent a bounded number, where room is made as in the table of clients' sessions."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._of: dict[str, OrderedDict[Session, AgentSession]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    async def ask(
        self, session: Session, agent: str, caller: Caller, call: Carried
    ) -> tuple[Answer, AgentSession]:
        """Pass a call on within the client's session at the agent. What `Relay.ask` raises, and Exhausted."""
        for _ in range(TRIES_MAX):
            try:
                at = await self._at(session, agent, caller)
            except _ForgottenError:
                continue
            at.calls += 1
            try:
                answer = await self._relay.ask(agent, _within(call, at.id).to)
            finally:
                at.calls -= 1
            if (await answer.head())[0] != NOT_FOUND:
                return answer, at
            answer.close()
            self._drop(session, agent, at)
        raise Unavailable("the agent forgets its sessions at once")

    async def answer(self, at: AgentSession, caller: Caller, answer: Json) -> None:
        """Bring the client's answer to where it was asked. Unavailable."""
        message = self._carried(caller, answer, at.id)
        status = await self._relay.tell(at.row, message.to(at.row), TELL_MAX_S)
        if status >= REFUSED:
            raise Unavailable(f"the agent does not take the answer: {status}")

    async def end(self, sessions: Iterable[AgentSession]) -> None:
        """Tell agents that the client is gone; those that cannot be told now forget by themselves."""
        async with asyncio.TaskGroup() as group:
            for at in sessions:
                group.create_task(self._end(at), name=f"mcp end {at.row.name}")

    def forget(self, session: Session) -> None:
        """The session is gone, and agents forget by themselves."""
        for agent, at in list(session.at_agents.items()):
            self._drop(session, agent, at)

    def forget_agent(self, agent: str) -> None:
        """The agent is gone."""
        for session, at in list(self._of.get(agent, {}).items()):
            self._drop(session, agent, at)

    async def _at(self, session: Session, agent: str, caller: Caller) -> AgentSession:
        """The client's session at this agent, which knows the level that the client wants to hear."""
        async with session.opening.setdefault(agent, asyncio.Lock()):
            at = session.at_agents.get(agent)
            if at is None:
                await self._make_room(agent)
                at = await self._open(session, agent, caller)
                if session.ended:
                    raise Unavailable("the client has ended its session")
                session.at_agents[agent] = at
                self._of.setdefault(agent, OrderedDict())[session] = at
            self._of[agent].move_to_end(session)
            if session.level and at.level != session.level:
                params = {"level": session.level}
                request = messages.request(secrets.token_hex(8), "logging/setLevel", params)
                try:
                    await self._exchange(agent, caller, request, at.id, session.revision)
                except _ForgottenError:
                    self._drop(session, agent, at)
                    raise
                at.level = session.level
            return at

    async def _open(self, session: Session, agent: str, caller: Caller) -> AgentSession:
        params = {
            "protocolVersion": session.revision,
            "capabilities": session.capabilities,
            "clientInfo": {"name": "", "version": "", **session.info},
        }
        begin = messages.request(secrets.token_hex(8), "initialize", params)
        row, identifier, said = await self._exchange(agent, caller, begin)
        if said.get("protocolVersion") != session.revision:
            raise Unavailable(f"agent '{row.name}' does not speak revision {session.revision}")
        begun = messages.notification("notifications/initialized")
        await self._exchange(agent, caller, begun, identifier, session.revision)
        return AgentSession(row, caller, identifier)

    async def _make_room(self, agent: str) -> None:
        of_agent = self._of.get(agent)
        if of_agent is None or len(of_agent) < OF_AGENT_MAX:
            return
        for session in crowd_first(of_agent):
            at = of_agent[session]
            if not at.calls:
                self._drop(session, agent, at)
                await self._end(at)
                return
        raise Exhausted("the agent has too many sessions already", quota="sessions of an agent")

    async def _exchange(
        self, agent: str, caller: Caller, message: Json, session: str = "", revision: str = ""
    ) -> tuple[model.AgentRow, str, Json]:
        """Send a message of our own; who took it, the session that it names, and its result. Unavailable."""
        carried = self._carried(caller, message, session, revision)
        rows: list[model.AgentRow] = []

        def to(row: model.AgentRow) -> bytes:
            rows.append(row)
            return carried.to(row)

        try:
            async with asyncio.timeout(OPEN_MAX_S):
                answer = await self._relay.ask(agent, to)
                try:
                    status, headers = await answer.head()
                    body = await answer.start()
                finally:
                    answer.close()
        except TimeoutError:
            raise Unavailable(f"the agent does not answer within {OPEN_MAX_S:g} s") from None
        if session and status == NOT_FOUND:
            raise _ForgottenError("the agent has forgotten the session")
        if status >= REFUSED:
            raise Unavailable(f"agent '{rows[-1].name}' refuses the client's session: {status}")
        return rows[-1], dict(headers).get(SESSION_HEADER, ""), _result(body)

    async def _end(self, at: AgentSession) -> None:
        carried = replace(self._carried(at.caller, None, at.id), method="DELETE")
        try:
            await self._relay.tell(at.row, carried.to(at.row), END_MAX_S)
        except FactoryError as error:  # it sleeps or is gone, and its sessions with it
            log.debug("an agent's session ends by itself", extra={"agent": at.row.id, "error": str(error)})

    def _carried(self, caller: Caller, message: Json | None, session: str, revision: str = "") -> Carried:
        said = {
            "host": FACTORY_AUTHORITY,
            "content-type": JSON,
            "accept": f"{JSON}, {EVENTS}",
            SESSION_HEADER: session,
            VERSION_HEADER: revision,
        }
        headers = [(name.encode(), value.encode()) for name, value in said.items() if value]
        return Carried("POST", PATH, headers, caller, messages.encode(message) if message else b"", {})

    def _drop(self, session: Session, agent: str, at: AgentSession) -> None:
        if session.at_agents.get(agent) is at:
            del session.at_agents[agent]
            of_agent = self._of[agent]
            of_agent.pop(session, None)
            if not of_agent:
                del self._of[agent]


def _within(call: Carried, session: str) -> Carried:
    """The same in another session; in none where the agent keeps none."""
    if not session:
        return call.without(SESSION)
    return replace(call, instead={**call.instead, SESSION: session.encode()})


def _result(body: bytes) -> Json:
    """What a response says; nothing where there is none to a notification."""
    try:
        found = messages.load(body) if body else {}
    except McpError as error:
        raise Unavailable(f"the agent's answer is broken: {error.message}") from error
    result = found.get("result", {}) if isinstance(found, dict) else {}
    return result if isinstance(result, dict) else {}
