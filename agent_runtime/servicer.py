"""AgentService on the wire: messages to plain calls and back, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final, Protocol

from agent_runtime import translate
from agent_runtime.assumed import AssumedAgent
from agent_runtime.limits import TOOL_DEFAULT_S
from agent_runtime.owner import TaskOwner
from agent_runtime.signals import Inbox
from agent_runtime.structs import to_dict, to_plain, to_value
from agent_runtime.tools.memory import SEARCH_DEFAULT
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import agent_service_pb2_grpc as rpc
from wire.errors import FactoryError, Invalid, NotFound
from wire.policy import TOKEN_PRINCIPALS, Principal, current_caller
from wire.tokens import SCOPES, SCOPES_METADATA

DRAIN_MAX_S: Final = 3600.0


class Instance(Protocol):
    """The instance that this service speaks for."""

    inbox: Inbox

    def agent(self) -> AssumedAgent: ...

    def maybe_agent(self) -> AssumedAgent | None: ...

    async def assume(self, request: pb.AssumeRequest) -> AssumedAgent: ...

    async def drain(self, grace_s: float) -> int: ...


class AgentServicer(rpc.AgentServiceServicer):
    """The same on the control socket and on the service endpoint: the policy table tells callers apart."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def Assume(self, request: pb.AssumeRequest, context: Any) -> pb.AssumeResponse:  # noqa: N802
        agent = await self._instance.assume(request)
        return pb.AssumeResponse(description=translate.description(agent, SCOPES))

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802
        return pb.DescribeResponse(description=translate.description(self._instance.agent(), _scopes()))

    async def Deliver(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.DeliverRequest], context: Any
    ) -> AsyncIterator[pb.DeliverResponse]:
        inbox = self._instance.inbox
        session, ended, reader = inbox.supersede(), asyncio.Event(), TaskOwner()
        yield pb.DeliverResponse(attached=True)
        try:
            reading = reader.spawn(self._read(request_iterator), "deliver")
            reading.add_done_callback(lambda _: inbox.end(ended))
            async with aclosing(inbox.batches(session, ended)) as batches:
                async for batch in batches:
                    yield batch
            if wrong := await reading:
                raise wrong
        finally:
            await reader.close()

    async def _read(self, requests: AsyncIterator[pb.DeliverRequest]) -> FactoryError | None:
        """Take what comes until the session ends; returns what was wrong with a request."""
        try:
            async for request in requests:
                await self._take(request)
        except FactoryError as error:
            return error
        return None

    async def _take(self, request: pb.DeliverRequest) -> None:
        agent = self._instance.maybe_agent()
        match request.WhichOneof("item"):
            case "signal" if agent is None:
                self._instance.inbox.refuse(request.signal, "the instance has no identity yet")
            case "signal":
                self._instance.inbox.accept(request.signal)
            case "roster" if agent is not None:
                await agent.take_roster(request.roster)
            case "identity" if agent is not None:
                agent.parts.identity.renew(request.identity)
            case _:
                return

    async def RunTask(  # noqa: N802
        self, request: pb.AgentServiceRunTaskRequest, context: Any
    ) -> AsyncIterator[pb.AgentServiceRunTaskResponse]:
        agent = self._instance.agent()
        updates = agent.run_task(request.task, request.actor, to_dict(request.input), _scopes_for(context))
        async with aclosing(updates):
            async for update in updates:
                yield translate.task_update(update)

    async def Chat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.ChatResponse]:  # noqa: N802
        conversation = translate.conversation(request)
        scopes = _scopes_for(context)
        async with aclosing(self._instance.agent().chat(conversation, scopes)) as pieces:
            async for piece in pieces:
                yield translate.chat_response(piece)

    async def ListTools(self, request: pb.ListToolsRequest, context: Any) -> pb.ListToolsResponse:  # noqa: N802
        tools = self._used().visible_tools(_scopes())
        return pb.ListToolsResponse(tools=[translate.tool(tool) for tool in tools])

    def _used(self) -> AssumedAgent:
        """The agent, which is not idle now: somebody reads from it without passing its gate."""
        agent = self._instance.agent()
        agent.gate.touch()
        return agent

    async def CallTool(  # noqa: N802
        self, request: pb.CallToolRequest, context: Any
    ) -> AsyncIterator[pb.CallToolResponse]:
        asked_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else TOOL_DEFAULT_S
        arguments, agent = to_dict(request.arguments), self._instance.agent()
        async with aclosing(agent.call_tool(request.name, arguments, asked_s, _scopes())) as updates:
            async for update in updates:
                yield translate.tool_update(update)

    async def PutMemory(self, request: pb.PutMemoryRequest, context: Any) -> pb.PutMemoryResponse:  # noqa: N802
        forget = not request.HasField("value") or request.value.WhichOneof("kind") is None
        await self._instance.agent().put_memory(request.key, to_plain(request.value), forget=forget)
        return pb.PutMemoryResponse()

    async def GetMemory(self, request: pb.GetMemoryRequest, context: Any) -> pb.GetMemoryResponse:  # noqa: N802
        memory = self._used().parts.context.memory
        if request.key not in memory:
            raise NotFound(
                f"nothing is remembered under '{request.key}'",
                resource_type="memory",
                resource_name=request.key,
            )
        return pb.GetMemoryResponse(value=to_value(memory.get(request.key)))

    async def Suspend(self, request: pb.SuspendRequest, context: Any) -> pb.SuspendResponse:  # noqa: N802
        idle_for_s = request.idle_for.ToNanoseconds() / 1e9
        return pb.SuspendResponse(state=translate.state(await self._instance.agent().suspend(idle_for_s)))

    async def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:  # noqa: N802
        state = translate.blob(request.state) if request.HasField("state") else None
        await self._instance.agent().resume(state)
        return pb.ResumeResponse()

    async def SearchMemory(  # noqa: N802
        self, request: pb.SearchMemoryRequest, context: Any
    ) -> pb.SearchMemoryResponse:
        hits = await self._instance.agent().search_memory(request.query, request.limit or SEARCH_DEFAULT)
        return pb.SearchMemoryResponse(
            hits=[pb.MemoryHit(key=hit.key, value=to_value(hit.value), score=hit.score) for hit in hits]
        )

    async def MountSkill(self, request: pb.MountSkillRequest, context: Any) -> pb.MountSkillResponse:  # noqa: N802
        if f"{request.mounted.name}@{request.mounted.digest}" != request.skill:
            raise Invalid(f"the pack that is mounted is not '{request.skill}'")
        tools = await self._instance.agent().parts.skills.mount(request.mounted)
        return pb.MountSkillResponse(tools=[translate.tool(tool) for tool in tools])

    async def UnmountSkill(  # noqa: N802
        self, request: pb.UnmountSkillRequest, context: Any
    ) -> pb.UnmountSkillResponse:
        await self._instance.agent().parts.skills.unmount(request.skill)
        return pb.UnmountSkillResponse()

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:  # noqa: N802
        grace_s = min(request.grace.ToNanoseconds() / 1e9, DRAIN_MAX_S)
        return pb.DrainResponse(abandoned_tasks=await self._instance.drain(grace_s))


def _scopes() -> frozenset[str]:
    """What the caller may do with tools; the factory's own parts have no scope and are not narrowed."""
    caller = current_caller()
    return caller.scopes if caller.principal in TOKEN_PRINCIPALS else SCOPES


def _scopes_for(context: Any) -> frozenset[str]:
    """The same; the factory may say for whom it asks, and is then narrowed to that one's scopes."""
    if current_caller().principal is Principal.FACTORY:
        for name, value in context.invocation_metadata() or ():
            if name == SCOPES_METADATA:
                return SCOPES & frozenset(str(value).split())
    return _scopes()
