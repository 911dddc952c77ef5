"""Agents whose tools a test changes at will: they speak AgentService on their control socket, and HTTP."""

# ruff: noqa: N802 - methods are named by the contract

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from aiohttp import web
from google.protobuf.json_format import MessageToDict

from factory_server.drivers.fake import FakeInstance
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import agent_service_pb2_grpc, events_pb2
from wire import status
from wire.errors import NotFound, Unavailable
from wire.health import HealthServicer, add_health

Made = TypeVar("Made")


def tool(name: str, *, read_only: bool = False, description: str = "") -> pb.Tool:
    """A tool without arguments."""
    return pb.Tool(name=name, read_only=read_only, description=description)


@dataclass(eq=False)
class ToolAgent:
    """One instance: what it offers, what it was asked, how it answers."""

    instance: FakeInstance
    name: str = ""
    generation: int = 0
    tools: dict[str, pb.Tool] = field(default_factory=dict)
    revision: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    drowsy: int = 0
    """So many calls are refused because it is about to fall asleep."""
    suspended: bool = False
    app: web.Application = field(default_factory=web.Application)

    def refuses(self) -> bool:
        """Whether a call comes too late, as it does at the runtime: a suspended agent takes none."""
        if self.drowsy:
            self.drowsy -= 1
            return True
        return self.suspended

    def offer(self, *tools: pb.Tool) -> None:
        """Offer exactly these from now on."""
        self.tools = {tool.name: tool for tool in tools}
        self.revision += 1
        self.changed.set()


@dataclass(eq=False)
class ToolAgents:
    """All agents of a site; `first` is what each offers when it begins."""

    first: tuple[pb.Tool, ...] = ()
    live: dict[str, ToolAgent] = field(default_factory=dict)
    """By name: names are unique in a test's crew."""
    _prepare: list[Callable[[ToolAgent], None]] = field(default_factory=list)

    def each(self, make: Callable[[ToolAgent], Made]) -> dict[str, Made]:
        """What is made for every agent before it serves, by instance: filled as they begin."""
        made: dict[str, Made] = {}

        def prepare(agent: ToolAgent) -> None:
            made[agent.instance.spec.instance] = make(agent)

        self._prepare.append(prepare)
        return made

    async def run(self, instance: FakeInstance) -> int:
        """The agent of one instance, as `FakeHost` runs it."""
        me = ToolAgent(instance)
        me.offer(*self.first)
        for prepare in self._prepare:
            prepare(me)
        own = Path(instance.own_dir)
        server = grpc.aio.server()
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(_Servicer(self, me), server)
        health = HealthServicer()
        health.set_all(True)
        add_health(health, server)
        server.add_insecure_port(f"unix://{own}/ctl.sock")
        async with contextlib.AsyncExitStack() as stack:
            runner = web.AppRunner(me.app, handler_cancellation=True)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.UnixSite(runner, str(own / "http.sock")).start()
            svc = await asyncio.start_unix_server(lambda _, writer: writer.close(), own / "svc.sock")
            await stack.enter_async_context(svc)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            instance.ready()
            await asyncio.Event().wait()
        return 0


class _Servicer(agent_service_pb2_grpc.AgentServiceServicer):
    def __init__(self, village: ToolAgents, me: ToolAgent) -> None:
        self._village = village
        self._me = me

    async def Assume(self, request: pb.AssumeRequest, context: Any) -> pb.AssumeResponse:
        self._me.name, self._me.generation = request.name, request.generation
        self._village.live[request.name] = self._me
        return pb.AssumeResponse()

    async def Deliver(self, requests: Any, context: Any) -> AsyncIterator[pb.DeliverResponse]:
        yield pb.DeliverResponse(attached=True)
        receipts: list[pb.SignalReceipt] = []

        async def read() -> None:
            async for request in requests:
                if request.HasField("signal"):
                    acked = events_pb2.RECEIPT_STAGE_ACKED
                    receipts.append(pb.SignalReceipt(broadcast=request.signal.broadcast, stage=acked))
                    self._me.changed.set()

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            try:
                said = -1
                while True:
                    self._me.changed.clear()
                    if said != self._me.revision:
                        said = self._me.revision
                        report = pb.AgentReport(revision=said, tools=self._me.tools.values())
                        yield pb.DeliverResponse(report=report)
                    if receipts:
                        yield pb.DeliverResponse(receipts=receipts)
                        receipts.clear()
                    await self._me.changed.wait()
            finally:
                reading.cancel()

    async def CallTool(self, request: pb.CallToolRequest, context: Any) -> AsyncIterator[pb.CallToolResponse]:
        me = self._me
        if me.refuses():
            await status.abort(context, Unavailable("the agent is suspended", reason="DRAINING"))
        if request.name not in me.tools:
            await status.abort(context, NotFound(f"no tool '{request.name}'"))
        me.calls.append(request.name)
        yield pb.CallToolResponse(progress=pb.TaskProgress(fraction=0.5, message="half"))
        if request.name == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                me.cancelled.append(request.name)
        result = pb.ToolResult(text=f"{me.name} {request.name} {MessageToDict(request.arguments)}")
        yield pb.CallToolResponse(result=result)

    async def Suspend(self, request: pb.SuspendRequest, context: Any) -> pb.SuspendResponse:
        import hashlib

        self._me.suspended = True
        data = b"state"
        return pb.SuspendResponse(state=pb.StateBlob(data=data, sha256=hashlib.sha256(data).hexdigest()))

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:
        self._me.suspended = False
        return pb.ResumeResponse()

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        return pb.DrainResponse()
