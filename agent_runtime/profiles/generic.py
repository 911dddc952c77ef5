"""An agent without code of its own: it acknowledges signals; its profile's model chats and does tasks in words.

Tasks that are not in words, and all tasks where the profile names no model, it repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_runtime.profile import Agent, TaskContext


class Generic(Agent):
    """Does what every agent can do."""

    async def on_signal(self, signal: str, payload: Mapping[str, Any]) -> None:
        self.ctx.log.debug("signal received", extra={"signal": signal})

    async def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:
        await ctx.progress(0.5, "reading the input")
        return {"agent": ctx.facts.name, "echo": dict(task_input)}
