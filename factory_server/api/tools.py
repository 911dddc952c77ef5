"""ToolService: decode, call, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from factory_server.api import pages
from factory_server.api.encode import timestamp
from factory_server.core.cursor import CursorCodec
from factory_server.core.tools import Entry
from factory_server.services.call_rates import CallRates
from factory_server.services.durations import seconds
from factory_server.services.tool_calls import TIMEOUT_S, ToolCalls
from factory_server.services.tools import ToolRegistry
from hyperfactory.v1 import tool_service_pb2 as pb
from hyperfactory.v1 import tool_service_pb2_grpc
from wire.policy import current_caller

BOOKMARK_S = 10.0
ALL_CREWS = "-"


@dataclass(frozen=True, slots=True)
class ToolUses:
    """The use cases behind ToolService and the MCP endpoints."""

    registry: ToolRegistry
    calls: ToolCalls
    codec: CursorCodec
    draining: asyncio.Event
    rates: CallRates


class ToolServicer(tool_service_pb2_grpc.ToolServiceServicer):
    """What the contract says of ToolService."""

    def __init__(self, uses: ToolUses) -> None:
        self._u = uses

    async def ListTools(
        self, request: pb.ToolServiceListToolsRequest, context: Any
    ) -> pb.ToolServiceListToolsResponse:
        scopes = current_caller().scopes
        scope = f"tools|{request.crew}|{request.agent}"
        page = pages.page_of(self._u.codec, scope, request.page_size, request.page_token)
        found = await self._u.registry.list(_crew(request.crew), request.agent, scopes, page)
        shown, token = pages.split(self._u.codec, scope, page, found, "place")
        return pb.ToolServiceListToolsResponse(tools=[registered(e) for e in shown], next_page_token=token)

    async def WatchTools(
        self, request: pb.WatchToolsRequest, context: Any
    ) -> AsyncIterator[pb.WatchToolsResponse]:
        changes = self._u.registry.watch(
            _crew(request.crew),
            current_caller().scopes,
            bookmark_s=seconds(request.bookmark_interval, BOOKMARK_S),
            draining=self._u.draining,
        )
        async for change in changes:
            yield pb.WatchToolsResponse(
                upserted=[registered(entry) for entry in change.upserted],
                removed=[pb.ToolKey(crew=crew, name=name) for crew, name in change.removed],
                synced=change.synced,
            )

    async def CallTool(
        self, request: pb.ToolServiceCallToolRequest, context: Any
    ) -> AsyncIterator[pb.ToolServiceCallToolResponse]:
        caller = current_caller()
        self._u.rates.take(caller.spiffe)
        entry = await self._u.calls.allowed(request.crew, request.name, caller.scopes)
        timeout_s = seconds(request.timeout, TIMEOUT_S)
        async with aclosing(self._u.calls.call(entry, request.arguments, timeout_s)) as updates:
            async for update in updates:
                if update.HasField("result"):
                    yield pb.ToolServiceCallToolResponse(result=update.result)
                else:
                    yield pb.ToolServiceCallToolResponse(progress=update.progress)


def registered(entry: Entry) -> pb.RegisteredTool:
    """An entry as the contract has it."""
    return pb.RegisteredTool(
        name=entry.name,
        tool=entry.tool,
        agent=entry.agent,
        agent_name=entry.agent_name,
        crew=entry.crew,
        generation=entry.generation,
        handshake_time=timestamp(entry.heard_at),
        stale=entry.stale,
    )


def _crew(crew: str) -> str:
    return "" if crew == ALL_CREWS else crew
