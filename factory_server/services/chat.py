"""Talk with an agent: find it, wake it where it sleeps, carry the conversation to it, and what it says back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from factory_server.core import model
from factory_server.core.errors import Denied, NotFound, Unavailable
from factory_server.core.lifecycle import TERMINAL
from factory_server.core.line import Line
from factory_server.services.parts import Parts
from factory_server.services.reach import Reach
from factory_server.services.sessions import Sessions
from hyperfactory.v1 import agent_service_pb2

CHAT_MAX_S = 3600.0
ASLEEP_AGAIN_S = 0.05


class Chats:
    """Conversations with agents over their control sockets, each with the scopes of whoever talks."""

    def __init__(self, parts: Parts, sessions: Sessions, reach: Reach) -> None:
        self._parts = parts
        self._sessions = sessions
        self._reach = reach

    async def find(self, name: str, *, own_crew: str = "") -> model.AgentRow:
        """The agent called `<crew>/<name>`, or by its id. NotFound; Denied beyond `own_crew`, if there is one."""
        crew, slash, short = name.partition("/")
        if own_crew and slash and crew != own_crew:
            raise _foreign(name)
        if not slash:
            found = await self._parts.store.get_agent(name)
        else:
            agents = (await self._parts.store.get_crew(crew)).agents
            live = [agent for agent in agents if agent.name == short and agent.state not in TERMINAL]
            if not live:
                raise NotFound(
                    f"crew '{crew}' has no agent '{short}'", resource_type="agent", resource_name=name
                )
            found = live[0]
        if own_crew and found.crew != own_crew:
            raise _foreign(name)
        return found

    async def talk(
        self, agent: str, request: agent_service_pb2.ChatRequest, scopes: frozenset[str]
    ) -> AsyncGenerator[agent_service_pb2.ChatResponse, None]:
        """What the agent says. One that was about to fall asleep has not begun: it is woken. Unavailable, Refused,
        and what the agent refuses."""
        ends = time.monotonic() + CHAT_MAX_S
        while True:
            row = await self._reach.serving(agent, within_s=ends - time.monotonic())
            begun = False
            try:
                async with aclosing(self._converse(row, request, scopes, ends - time.monotonic())) as said:
                    async for response in said:
                        begun = True
                        yield response
            except Unavailable as error:
                if begun or error.reason != "DRAINING" or time.monotonic() >= ends:
                    raise
                await asyncio.sleep(ASLEEP_AGAIN_S)
            else:
                return

    async def _converse(
        self,
        agent: model.AgentRow,
        request: agent_service_pb2.ChatRequest,
        scopes: frozenset[str],
        deadline_s: float,
    ) -> AsyncGenerator[agent_service_pb2.ChatResponse, None]:
        session = self._sessions.get(agent.id)
        own: Line | None = None
        if session is not None and session.generation == agent.generation:
            line = session.line
        elif agent.instance is None:
            raise Unavailable(f"agent '{agent.name}' has no instance")
        else:
            # Another process keeps the crew, and the agent's session: a line for this conversation.
            line = own = self._parts.open_line(agent.instance.control)
        try:
            async with aclosing(line.chat(request, scopes=scopes, deadline_s=deadline_s)) as said:
                async for response in said:
                    yield response
        finally:
            if own is not None:
                await own.close()


def _foreign(name: str) -> Denied:
    return Denied(f"an agent may talk within its own crew only, and '{name}' is of another")
