"""The factory's line to one instance: AgentService over its control socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from factory_server.core.errors import Unavailable
from hyperfactory.v1 import agent_service_pb2, agent_service_pb2_grpc
from wire.channels import open_control_channel
from wire.status import from_rpc_error
from wire.tokens import SCOPES_METADATA

DRAIN_SLACK_S = 2.0
STATE_BYTES_MAX = 17 << 20
"""A state blob of 16 MiB with its message around it."""
OPTIONS = (
    ("grpc.max_receive_message_length", STATE_BYTES_MAX),
    ("grpc.max_send_message_length", STATE_BYTES_MAX),
)


class GrpcLine:
    """`core.line.Line` over gRPC. One session at a time; tasks run beside it on the same channel."""

    def __init__(self, control: str) -> None:
        self._channel = open_control_channel(control, OPTIONS)
        self._stub: agent_service_pb2_grpc.AgentServiceAsyncStub = agent_service_pb2_grpc.AgentServiceStub(
            self._channel
        )
        self._session: Any = None
        self._writing = asyncio.Lock()

    async def greet(self, *, deadline_s: float) -> None:
        """See the port."""
        check = health_pb2_grpc.HealthStub(self._channel).Check
        with _spoken():
            await check(health_pb2.HealthCheckRequest(), timeout=deadline_s)

    async def assume(
        self, request: agent_service_pb2.AssumeRequest, *, deadline_s: float
    ) -> agent_service_pb2.AssumeResponse:
        """See the port."""
        with _spoken():
            return await self._stub.Assume(request, timeout=deadline_s, wait_for_ready=False)

    async def attend(self) -> AsyncIterator[agent_service_pb2.DeliverResponse]:
        """See the port."""
        call = self._stub.Deliver()  # type: ignore[call-arg]  # without an iterator one reads and writes
        try:
            while True:
                with _spoken():
                    response = await call.read()
                if not isinstance(response, agent_service_pb2.DeliverResponse):
                    return
                if response.attached:
                    self._session = call
                yield response
        finally:
            if self._session is call:
                self._session = None
            call.cancel()

    async def send(self, item: agent_service_pb2.DeliverRequest) -> None:
        """See the port."""
        session = self._session
        if session is None:
            raise Unavailable("the agent's session does not stand")
        try:
            async with self._writing:
                with _spoken():
                    await session.write(item)
        except asyncio.InvalidStateError as error:
            raise Unavailable(f"the agent's session broke: {error}") from error

    async def run_task(
        self,
        request: agent_service_pb2.AgentServiceRunTaskRequest,
        *,
        scopes: frozenset[str],
        deadline_s: float,
    ) -> AsyncIterator[agent_service_pb2.AgentServiceRunTaskResponse]:
        """See the port."""
        call = self._stub.RunTask(request, timeout=deadline_s, metadata=_narrowed(scopes))
        async with aclosing(_updates(call)) as updates:
            async for update in updates:
                yield update

    async def call_tool(
        self, request: agent_service_pb2.CallToolRequest, *, deadline_s: float
    ) -> AsyncIterator[agent_service_pb2.CallToolResponse]:
        """See the port."""
        async with aclosing(_updates(self._stub.CallTool(request, timeout=deadline_s))) as updates:
            async for update in updates:
                yield update

    async def chat(
        self, request: agent_service_pb2.ChatRequest, *, scopes: frozenset[str], deadline_s: float
    ) -> AsyncGenerator[agent_service_pb2.ChatResponse, None]:
        """See the port."""
        call = self._stub.Chat(request, timeout=deadline_s, metadata=_narrowed(scopes))
        try:
            while True:
                with _spoken():
                    response = await call.read()
                if not isinstance(response, agent_service_pb2.ChatResponse):
                    return
                yield response
        finally:
            call.cancel()

    async def suspend(self, *, idle_for_s: float, deadline_s: float) -> agent_service_pb2.StateBlob:
        """See the port."""
        request = agent_service_pb2.SuspendRequest()
        if idle_for_s > 0:
            request.idle_for.FromNanoseconds(int(idle_for_s * 1e9))
        with _spoken():
            return (await self._stub.Suspend(request, timeout=deadline_s)).state

    async def take_back(self, *, deadline_s: float) -> None:
        """See the port."""
        with _spoken():
            await self._stub.Resume(agent_service_pb2.ResumeRequest(), timeout=deadline_s)

    async def mount_skill(
        self, skill: agent_service_pb2.MountedSkill, *, deadline_s: float
    ) -> Sequence[agent_service_pb2.Tool]:
        """See the port."""
        request = agent_service_pb2.MountSkillRequest(skill=f"{skill.name}@{skill.digest}", mounted=skill)
        with _spoken():
            return list((await self._stub.MountSkill(request, timeout=deadline_s)).tools)

    async def unmount_skill(self, name: str, *, deadline_s: float) -> None:
        """See the port."""
        request = agent_service_pb2.UnmountSkillRequest(skill=name)
        with _spoken():
            await self._stub.UnmountSkill(request, timeout=deadline_s)

    async def drain(self, *, grace_s: float) -> None:
        """See the port."""
        grace = Duration()
        grace.FromNanoseconds(int(grace_s * 1e9))
        with _spoken():
            await self._stub.Drain(
                agent_service_pb2.DrainRequest(grace=grace), timeout=grace_s + DRAIN_SLACK_S
            )

    async def close(self) -> None:
        """See the port."""
        await self._channel.close(None)


def _narrowed(scopes: frozenset[str]) -> tuple[tuple[str, str]]:
    """Says for whom the factory asks."""
    return ((SCOPES_METADATA, " ".join(sorted(scopes))),)


async def _updates(call: Any) -> AsyncGenerator[Any, None]:
    """What a call streams back; the call ends with the iteration."""
    try:
        while True:
            with _spoken():
                update = await call.read()
            if not isinstance(update, Message):
                return
            yield update
    finally:
        call.cancel()


@contextmanager
def _spoken() -> Iterator[None]:
    """Native errors for what a call ends with.

    A call whose channel is closed under it ends with CancelledError, though nobody cancelled the caller: that
    is the instance's end, not the caller's.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except grpc.aio.UsageError as error:  # a call on a channel that was closed already
        raise Unavailable("the line to the agent was closed") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Unavailable("the line to the agent was closed") from None
