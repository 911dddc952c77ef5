"""Profiles whose code misbehaves or tells what happens to it, for the tests of the runtime."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from agent_runtime.profile import Agent, Call, ChatPiece, ChatTurn, Context, Outcome, TaskContext, Tool
from wire.errors import Refused


class BreaksWhenMade(Agent):
    def __init__(self) -> None:
        raise RuntimeError("cannot be made")


class BreaksAtStart(Agent):
    async def on_start(self, ctx: Context) -> None:
        raise RuntimeError("cannot start")


class BreaksAtResume(Agent):
    async def resume(self, state: bytes) -> None:
        raise RuntimeError("cannot read this")


class NeedsColour(Agent):
    async def on_start(self, ctx: Context) -> None:
        self.found = {"colour": os.environ["COLOUR"], "other": os.environ.get("OTHER")}

    async def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.found


class Recorder(Agent):
    """Keeps the signals it gets; rejects those named REJECT, breaks on BREAK, and is slow on SLOW."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.may_go_on = asyncio.Event()

    async def on_signal(self, signal: str, payload: Mapping[str, Any]) -> None:
        self.seen.append((signal, dict(payload)))
        if signal == "REJECT":
            raise Refused("not today")
        if signal == "BREAK":
            raise ValueError("a secret detail")
        if signal == "SLOW":
            await self.may_go_on.wait()


class Blocking(Agent):
    """Plain functions that block a thread."""

    release = threading.Event()

    def on_signal(self, signal: str, payload: Mapping[str, Any]) -> None:  # type: ignore[override]
        self.release.wait(20)

    def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:  # type: ignore[override]
        return {"thread": threading.current_thread().name}


class Worker(Agent):
    """Tasks that end as their input says."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.state = b""

    async def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:
        match "wait" if ctx.facts.config.get("wait") else task_input.get("do"):
            case "wait":
                await ctx.progress(0.1, "waiting")
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            case "raise":
                raise ValueError("broken inside")
            case "refuse":
                raise Refused("not like this")
            case "odd":
                return {"value": object()}
            case "large":
                return {"value": "x" * 3_000_000}
            case "program":
                done = await ctx.run(["/bin/sh", "-c", str(task_input["script"])], timeout_s=10)
                return {"code": done.code, "out": done.stdout}
        for step in range(3):
            await ctx.progress(step / 3, f"step {step}", step=step)
        return {"task": ctx.task, "mates": [mate.name for mate in ctx.roster]}

    async def suspend(self) -> bytes:
        return self.state

    async def resume(self, state: bytes) -> None:
        self.state = state

    async def chat(self, messages: Sequence[ChatTurn]) -> AsyncIterator[ChatPiece]:  # type: ignore[override]
        if messages[-1].content == "break":
            raise ValueError("chat is broken")
        yield ChatPiece("own ")
        yield ChatPiece("answer")

    def tools(self) -> Sequence[Tool]:
        schema = {"type": "object", "properties": {}}
        return [
            Tool("slow", "Tells its progress and never ends.", schema, self._slow, read_only=True),
            Tool("broken", "Raises.", schema, self._broken, read_only=True),
        ]

    async def _slow(self, call: Call) -> Outcome:
        await call.report(0.5, "half", {})
        await asyncio.Event().wait()
        return Outcome("never")

    async def _broken(self, call: Call) -> Outcome:
        raise ValueError("tool is broken")
