"""Call a tool by its public name: authorise it, reach its agent, pass on what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from factory_server.core import model, tools
from factory_server.core.errors import Unavailable
from factory_server.core.line import Line
from factory_server.core.tools import Entry
from factory_server.services.parts import Parts
from factory_server.services.reach import Reach
from factory_server.services.sessions import Sessions
from factory_server.services.tools import ToolRegistry
from hyperfactory.v1 import agent_service_pb2

TIMEOUT_S = 60.0
DEADLINE_SLACK_S = 2.0
"""The agent ends a call at its time; its answer may take so much longer."""
ASLEEP_AGAIN_S = 0.05


class ToolCalls:
    """Calls of agents' tools over their control sockets."""

    def __init__(self, parts: Parts, sessions: Sessions, registry: ToolRegistry, reach: Reach) -> None:
        self._parts = parts
        self._sessions = sessions
        self._registry = registry
        self._reach = reach

    async def allowed(self, crew: str, name: str, scopes: frozenset[str]) -> Entry:
        """The tool, where these scopes may call it. NotFound, Denied."""
        entry = await self._registry.find(crew, name)
        tools.check_use(name, entry.tool, scopes)
        return entry

    async def call(
        self, entry: Entry, arguments: Struct, timeout_s: float
    ) -> AsyncGenerator[agent_service_pb2.CallToolResponse, None]:
        """Progress, then the result. An agent that was about to fall asleep has not begun: it is woken."""
        ends = time.monotonic() + timeout_s
        anew = False
        while True:
            agent = await self._reach.serving(entry.agent, within_s=ends - time.monotonic(), anew=anew)
            left_s = max(ends - time.monotonic(), ASLEEP_AGAIN_S)
            request = agent_service_pb2.CallToolRequest(
                name=entry.tool.name, arguments=arguments, timeout=_span(left_s)
            )
            begun = False
            try:
                async with aclosing(self._converse(agent, request, left_s + DEADLINE_SLACK_S)) as updates:
                    async for update in updates:
                        begun = True
                        yield update
            except Unavailable as error:
                refused = error.reason == "DRAINING"
                if begun or time.monotonic() >= ends or not (refused or await self._reach.slept(agent)):
                    raise
                anew = True
                await asyncio.sleep(ASLEEP_AGAIN_S)
            else:
                return

    async def _converse(
        self, agent: model.AgentRow, request: agent_service_pb2.CallToolRequest, deadline_s: float
    ) -> AsyncGenerator[agent_service_pb2.CallToolResponse, None]:
        session = self._sessions.get(agent.id)
        if session is not None and session.generation == agent.generation:
            async for update in session.line.call_tool(request, deadline_s=deadline_s):
                yield update
            return
        async with aclosing(self._alone(agent, request, deadline_s)) as updates:
            async for update in updates:
                yield update

    async def _alone(
        self, agent: model.AgentRow, request: agent_service_pb2.CallToolRequest, deadline_s: float
    ) -> AsyncGenerator[agent_service_pb2.CallToolResponse, None]:
        """Another process keeps the crew, and the agent's session: a line for this call."""
        if agent.instance is None:
            raise Unavailable(f"agent '{agent.name}' has no instance")
        line: Line = self._parts.open_line(agent.instance.control)
        try:
            async for update in line.call_tool(request, deadline_s=deadline_s):
                yield update
        finally:
            await line.close()


def _span(seconds: float) -> Duration:
    span = Duration()
    span.FromNanoseconds(int(seconds * 1e9))
    return span
