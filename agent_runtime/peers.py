"""Crew mates as an agent calls them: gRPC over their sockets, mutual TLS, a deadline on every call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from agent_runtime.ids import new_id
from agent_runtime.limits import (
    MESSAGE_MAX_BYTES,
    PEER_CALL_DEFAULT_S,
    PEER_CHANNEL_GRACE_S,
    PEER_CHANNELS_MAX,
)
from agent_runtime.paths import Paths
from agent_runtime.roster import Roster
from agent_runtime.structs import to_dict, to_struct
from agent_runtime.tools.registry import Outcome
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import agent_service_pb2_grpc as rpc
from wire.channels import open_channel
from wire.errors import Exhausted, FactoryError, Unavailable
from wire.identity import Identity, agent_authority
from wire.status import from_rpc_error, from_status

OnProgress = Callable[[float, str, Mapping[str, Any]], Awaitable[None]]


class Peers:
    """Channels to crew mates, opened when first used, closed when the mate leaves the roster."""

    def __init__(self, paths: Paths, crew: str, roster: Roster, identity: Callable[[], Identity]) -> None:
        self._paths = paths
        self._crew = crew
        self._roster = roster
        self._identity = identity
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._frozen: dict[str, int] = {}
        """Since when mates are frozen, as the roster said last."""

    def get(self, name: str) -> Peer:
        """A mate by name; `NotFound` for one that is not in the roster."""
        self._roster.require(name)
        return Peer(name, rpc.AgentServiceStub(self._channel(name)))

    def _channel(self, name: str) -> grpc.aio.Channel:
        channel = self._channels.get(name)
        if channel is None:
            if len(self._channels) >= PEER_CHANNELS_MAX:
                raise Exhausted(f"cannot talk to more than {PEER_CHANNELS_MAX} peers", quota="peer channels")
            channel = self._channels[name] = open_channel(
                f"unix:{self._paths.peer(name)}",
                self._identity,
                authority=agent_authority(name, self._crew),
                options=(("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),),
            )
        return channel

    async def forget_gone(self) -> None:
        """Close channels to mates that left or were frozen since; their calls in flight get a moment to end.

        A frozen mate answers on no channel that was open before: the next one leads to who wakes it.
        """
        for name in [name for name in self._channels if self._roster.get(name) is None]:
            await self._channels.pop(name).close(PEER_CHANNEL_GRACE_S)
        before, self._frozen = self._frozen, {mate.name: mate.frozen_ns for mate in self._roster}
        for name, frozen_ns in self._frozen.items():
            if frozen_ns and before.get(name) != frozen_ns and name in self._channels:
                await self._channels.pop(name).close(PEER_CHANNEL_GRACE_S)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()


class Peer:
    """One crew mate. Errors are native; a failed task raises the error that ended it.

    Calls wait for a mate that is being replaced, up to their deadline; one that dies during a call raises
    `Unavailable`, and whether to ask its successor is the caller's to know.
    """

    def __init__(self, name: str, stub: rpc.AgentServiceAsyncStub) -> None:
        self.name = name
        self.stub = stub

    async def run_task(
        self,
        task_input: Mapping[str, Any],
        *,
        task: str = "",
        timeout_s: float = PEER_CALL_DEFAULT_S,
        on_progress: OnProgress | None = None,
    ) -> dict[str, Any]:
        """Give the mate a task and wait for its output."""
        request = pb.AgentServiceRunTaskRequest(task=task or new_id(), input=to_struct(task_input))
        async with _native_errors():
            async for update in self.stub.RunTask(request, timeout=timeout_s, wait_for_ready=True):
                if update.HasField("result"):
                    return _output(update.result)
                if on_progress is not None:
                    progress = update.progress
                    await on_progress(progress.fraction, progress.message, to_dict(progress.detail))
        raise Unavailable(f"'{self.name}' ended the task without a result")

    async def call_tool(
        self, name: str, arguments: Mapping[str, Any], *, timeout_s: float = PEER_CALL_DEFAULT_S
    ) -> Outcome:
        """Call one of the mate's tools."""
        request = pb.CallToolRequest(name=name, arguments=to_struct(arguments))
        request.timeout.FromMilliseconds(round(timeout_s * 1000))
        async with _native_errors():
            async for update in self.stub.CallTool(request, timeout=timeout_s, wait_for_ready=True):
                if update.HasField("result"):
                    result = update.result
                    return Outcome(result.text, to_dict(result.structured), result.is_error)
        raise Unavailable(f"'{self.name}' ended the tool call without a result")

    async def chat(
        self, messages: Sequence[tuple[str, str]], *, timeout_s: float = PEER_CALL_DEFAULT_S
    ) -> str:
        """Say something to the mate, as (role, text) pairs, and return the whole answer."""
        request = pb.ChatRequest(
            messages=[pb.ChatMessage(role=role, content=text) for role, text in messages]
        )
        async with _native_errors():
            pieces = self.stub.Chat(request, timeout=timeout_s, wait_for_ready=True)
            return "".join([piece.delta async for piece in pieces])


def _output(result: pb.TaskResult) -> dict[str, Any]:
    if result.status.code:
        raise from_status(result.status)
    return to_dict(result.output)


@asynccontextmanager
async def _native_errors() -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        native: FactoryError = from_rpc_error(error)
        raise native from error
