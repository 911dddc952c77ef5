"""What a profile's code is written against: the `Agent` base class and the context it is given."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_runtime.bus import Bus
from agent_runtime.capabilities import Capabilities
from agent_runtime.memory import Memory
from agent_runtime.offers import Prompt, PromptArgument, Prompted, Resource
from agent_runtime.peers import Peer, Peers
from agent_runtime.process import Completed, Runner
from agent_runtime.roster import Roster
from agent_runtime.structs import to_struct
from agent_runtime.tools.registry import Call, Outcome, Report, Round, Tool
from wire.errors import Refused

__all__ = [
    "Agent",
    "Call",
    "ChatPiece",
    "ChatTurn",
    "Context",
    "Facts",
    "Outcome",
    "Prompt",
    "PromptArgument",
    "Prompted",
    "Resource",
    "Round",
    "TaskContext",
    "Tool",
    "ToolUse",
]


@dataclass(frozen=True, slots=True)
class Facts:
    """Who this agent is; fixed for the life of its instance."""

    agent: str
    uid: str
    name: str
    crew: str
    generation: int
    profile: str
    group: str
    scope: str
    authority: str
    spiffe: str
    env: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    proxy: str = ""
    """URL of the HTTP proxy that leads out, where the crew has one; programs find it in their environment."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that a model wants called."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    raw: str = ""
    """The arguments as the model wrote them, where that is known."""
    problem: str = ""
    """What the model got wrong in writing them; it is told so, and nothing is called."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a conversation."""

    role: str
    content: str = ""
    tool_uses: Sequence[ToolUse] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """A piece of an answer: text to append, tools to call, and in the last one the reason it ends."""

    delta: str = ""
    tool_uses: Sequence[ToolUse] = ()
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Context:
    """What an agent's code has: who it is, its crew, its bus, its memory, its workspace."""

    facts: Facts
    roster: Roster
    bus: Bus
    memory: Memory
    workspace: Path
    peers: Peers
    runner: Runner
    log: logging.LoggerAdapter[logging.Logger]
    # Calls a plain function in one of the agent's few threads: for what would block the event loop.
    in_thread: Callable[..., Awaitable[Any]]
    # What the agent offers now: code may add and take away while it runs.
    capabilities: Capabilities

    def peer(self, name: str) -> Peer:
        """A crew mate, by name; `NotFound` for one that is not in the roster."""
        return self.peers.get(name)

    async def run(
        self, argv: Sequence[str], *, timeout_s: float = 60.0, stdin: bytes = b"", cwd: Path | None = None
    ) -> Completed:
        """Run a program in the workspace with bounded time, output and resources."""
        return await self.runner.run(argv, timeout_s=timeout_s, stdin=stdin, cwd=cwd)


@dataclass(slots=True)
class TaskContext(Context):
    """The context of one task."""

    task: str
    actor: str
    report: Report

    async def progress(self, fraction: float, message: str = "", **detail: Any) -> None:
        """Say how far the task is, from 0 to 1."""
        to_struct(detail)  # what cannot be sent is refused here, in the code that made it
        await self.report(fraction, message, detail)


class Agent:
    """Base of every profile's class: override what the profile can do.

    Methods may be coroutines, which run in the event loop and must not block it, or plain functions, which
    run in one of a few threads. `ctx` is set before `on_start`.
    """

    ctx: Context

    async def on_start(self, ctx: Context) -> None:
        """Called once, before the agent serves."""

    async def on_signal(self, signal: str, payload: Mapping[str, Any]) -> None:
        """Called for each signal, one after the other. Raise to reject it."""

    async def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:
        """Work on a task and return its output."""
        raise Refused(f"profile '{ctx.facts.profile}' takes no tasks")

    def chat(self, messages: Sequence[ChatTurn]) -> AsyncIterator[ChatPiece]:
        """Answer a conversation. Without an override the profile's model answers."""
        raise NotImplementedError

    def tools(self) -> Sequence[Tool]:
        """Tools beside the built-in ones."""
        return ()

    def resources(self) -> Sequence[Resource]:
        """What can be read, by MCP."""
        return ()

    def prompts(self) -> Sequence[Prompt]:
        """What users may choose, by MCP."""
        return ()

    async def suspend(self) -> bytes:
        """State beside the memory that hibernation must keep."""
        return b""

    async def resume(self, state: bytes) -> None:
        """Take back what `suspend` returned."""
