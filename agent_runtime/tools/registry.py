"""The tools of one agent: which of them a scope may see and call, and how a call is checked and carried out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime.limits import TASK_MAX_S
from agent_runtime.tools.schema import check_schema, problems
from wire.errors import Denied, Invalid, NotFound

NAME_RE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
CALL_TOOL: Final = "/hyperfactory.v1.AgentService/CallTool"
# Scopes that may change things; every other scope sees read-only tools alone.
WRITERS: Final = frozenset({"admin", "coder"})

Report = Callable[[float, str, Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool answered; `is_error` means that the caller can mend it."""

    text: str
    structured: Mapping[str, Any] = field(default_factory=dict)
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: its checked arguments, its time, and where progress goes."""

    arguments: Mapping[str, Any]
    timeout_s: float
    report: Report


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: what callers see of it, and what carries it out (a coroutine that must not block)."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    handler: Callable[[Call], Awaitable[Outcome]]
    read_only: bool = False

    def __post_init__(self) -> None:
        if not NAME_RE.fullmatch(self.name):
            raise ValueError(f"cannot offer a tool named '{self.name}'")
        check_schema(self.input_schema)


def may_write(scopes: Iterable[str]) -> bool:
    return not WRITERS.isdisjoint(scopes)


class Registry:
    """Tools by name."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ValueError(f"cannot offer two tools named '{tool.name}'")
            self._tools[tool.name] = tool

    def visible(self, *, writer: bool) -> list[Tool]:
        """What a caller may use, by name."""
        return [tool for _, tool in sorted(self._tools.items()) if writer or tool.read_only]

    def require(self, name: str, *, writer: bool) -> Tool:
        """The tool of this name; `NotFound` without one, `Denied` beyond the scope."""
        tool = self._tools.get(name)
        if tool is None:
            raise NotFound(f"no tool '{name}'", resource_type="tool", resource_name=name)
        if not writer and not tool.read_only:
            raise Denied(
                f"the scope does not reach tool '{name}': it changes things",
                reason="SCOPE_MISSING",
                metadata={"method": CALL_TOOL, "scope": " ".join(sorted(WRITERS))},
            )
        return tool

    async def call(
        self, tool: Tool, arguments: Mapping[str, Any], timeout_s: float, report: Report
    ) -> Outcome:
        """Check the arguments and run the tool; what the caller can mend comes back as an error outcome."""
        if wrong := list(problems(tool.input_schema, arguments)):
            return Outcome("; ".join(wrong[:8]), {"problems": wrong[:8]}, is_error=True)
        timeout_s = min(timeout_s, TASK_MAX_S)
        try:
            async with asyncio.timeout(timeout_s):
                return await tool.handler(Call(arguments, timeout_s, report))
        except TimeoutError:
            return Outcome(f"tool '{tool.name}' did not end within {timeout_s:g} s", is_error=True)
        except Invalid as error:
            return Outcome(error.message, is_error=True)
