"""The factory's line to one instance: what it can ask of the runtime inside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

from hyperfactory.v1 import agent_service_pb2


class Line(Protocol):
    """The factory's line to one instance, over its control socket. Raises Unavailable where it is silent."""

    async def greet(self, *, deadline_s: float) -> None:
        """Hear the instance answer, whatever it says."""

    async def assume(
        self, request: agent_service_pb2.AssumeRequest, *, deadline_s: float
    ) -> agent_service_pb2.AssumeResponse:
        """Make the instance an agent. Invalid or Refused where the profile is broken."""

    def attend(self) -> AsyncIterator[agent_service_pb2.DeliverResponse]:
        """Open the session and yield what the agent says, first that it stands; ends or raises Unavailable when
        the session breaks."""

    async def send(self, item: agent_service_pb2.DeliverRequest) -> None:
        """Put an item on the session. Unavailable without one."""

    def run_task(
        self,
        request: agent_service_pb2.AgentServiceRunTaskRequest,
        *,
        scopes: frozenset[str],
        deadline_s: float,
    ) -> AsyncIterator[agent_service_pb2.AgentServiceRunTaskResponse]:
        """Run a task, with the tools that these scopes may use; progress, then the result."""

    def call_tool(
        self, request: agent_service_pb2.CallToolRequest, *, deadline_s: float
    ) -> AsyncIterator[agent_service_pb2.CallToolResponse]:
        """Call a tool; progress, then the result. Ending the iterator early cancels the call at the agent."""

    def chat(
        self, request: agent_service_pb2.ChatRequest, *, scopes: frozenset[str], deadline_s: float
    ) -> AsyncGenerator[agent_service_pb2.ChatResponse, None]:
        """Talk, with the tools that these scopes may use. Ending the iterator early cancels the conversation."""

    async def suspend(self, *, idle_for_s: float, deadline_s: float) -> agent_service_pb2.StateBlob:
        """The agent's state; from then on it takes no work, and signals wait. Refused where it is at work or was
        used within `idle_for_s` (metadata `idle_s`)."""

    async def take_back(self, *, deadline_s: float) -> None:
        """Undo `suspend`: the agent works on. Without a suspension nothing happens."""

    async def mount_skill(
        self, skill: agent_service_pb2.MountedSkill, *, deadline_s: float
    ) -> Sequence[agent_service_pb2.Tool]:
        """Register a pack that lies at /skills/<name>; the tools that came. Harmless again. Invalid."""

    async def unmount_skill(self, name: str, *, deadline_s: float) -> None:
        """Forget a pack, when the calls of its tools have ended. Idempotent."""

    async def drain(self, *, grace_s: float) -> None:
        """Let tasks end, up to the grace."""

    async def close(self) -> None:
        """Let go of the line; the instance lives on."""
