"""The tools of one agent: which of them a scope may see and call, and how a call is checked and carried out."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime.limits import TASK_MAX_S
from agent_runtime.tools.schema import check_schema, faults, mismatches
from wire.errors import AlreadyExists, Denied, Invalid, NotFound

logger = logging.getLogger(__name__)

NAME_RE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
CALL_TOOL: Final = "/hyperfactory.v1.AgentService/CallTool"
# Scopes that may change things; every other scope sees read-only tools alone.
WRITERS: Final = frozenset({"admin", "coder"})
ADMIN: Final = "admin"
CODER: Final = "coder"
# The built-in tools and those of the profile's own code.
OWN: Final = "own"
PROBLEMS_SHOWN: Final = 8

Report = Callable[[float, str, Mapping[str, Any]], Awaitable[None]]
Log = Callable[[str, Any], None]
"""Level and data of a message to whoever called."""
Ask = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""A question to whoever called, by method and parameters; its answer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool answered; `is_error` means that the caller can mend it.

    `content` holds MCP's blocks where an answer is more than text. `asks` are requests to the caller
    (`elicitation/create` and the like), by a name of the tool's own: it is called again with their answers
    and with `state`.
    """

    text: str
    structured: Mapping[str, Any] = field(default_factory=dict)
    is_error: bool = False
    content: Sequence[Mapping[str, Any]] = ()
    asks: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """What the caller says beside the arguments: what it can be asked, and what it answered last time.

    `ask` asks it while it waits, where its era of MCP can. `caller` is its proven name.
    """

    capabilities: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    ask: Ask | None = None
    caller: str = ""


def unheard(_level: str, _data: Any) -> None:
    """A log message that nobody wants."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: its checked arguments, its time, and where progress goes."""

    arguments: Mapping[str, Any]
    timeout_s: float
    report: Report
    log: Log = unheard
    round: Round = field(default_factory=Round)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: what callers see of it, and what carries it out (a coroutine that must not block)."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    handler: Callable[[Call], Awaitable[Outcome]]
    read_only: bool = False
    title: str = ""
    output_schema: Mapping[str, Any] | None = None
    """What its structured results must be like, its servers' too: callers rely on it."""
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None
    foreign: bool = False
    """A server of its own stands behind it, which checks the arguments against whatever its schema says."""
    scope: str = ""
    """The least scope that may use it, where that is more than what it does asks for."""

    def __post_init__(self) -> None:
        if not NAME_RE.fullmatch(self.name):
            raise ValueError(f"cannot offer a tool named '{self.name}'")
        if not self.foreign:
            check_schema(self.input_schema)
        if self.output_schema is not None:
            check_schema(self.output_schema)


def may_write(scopes: Iterable[str]) -> bool:
    return not WRITERS.isdisjoint(scopes)


def reaches(tool: Tool, *, writer: bool, admin: bool) -> bool:
    """Whether a caller may see and use it."""
    match tool.scope:
        case "admin":
            return admin
        case "coder":
            return writer
        case _:
            return writer or tool.read_only


def _nobody() -> None:
    return


class Registry:
    """Tools by name, from several sources; `changed` is called when they are other ones than before."""

    def __init__(self, tools: Iterable[Tool] = (), changed: Callable[[], None] = _nobody) -> None:
        self._sources: dict[str, list[Tool]] = {}
        self._tools: dict[str, Tool] = {}
        self._changed = _nobody
        self.replace(OWN, tools)
        self._changed = changed

    def replace(self, source: str, tools: Iterable[Tool]) -> None:
        """Offer exactly these of a source; none: the source is gone. `AlreadyExists` for another's name, and
        then nothing changes."""
        others = {tool.name: tool for name, kept in self._sources.items() if name != source for tool in kept}
        fresh: dict[str, Tool] = {}
        for tool in tools:
            if tool.name in others or tool.name in fresh:
                message = f"cannot offer two tools named '{tool.name}'"
                raise AlreadyExists(message, metadata={"name": tool.name})
            fresh[tool.name] = tool
        if list(fresh.values()) == self._sources.get(source, []):
            return
        self._sources[source] = list(fresh.values())
        self._tools = dict(sorted((others | fresh).items()))
        self._changed()

    def __iter__(self) -> Iterator[Tool]:
        """By name."""
        return iter(self._tools.values())

    def visible(self, *, writer: bool, admin: bool = False) -> list[Tool]:
        """What a caller may use, by name."""
        return [tool for tool in self._tools.values() if reaches(tool, writer=writer, admin=admin)]

    def require(self, name: str, *, writer: bool, admin: bool = False) -> Tool:
        """The tool of this name; `NotFound` without one, `Denied` beyond the scope."""
        tool = self._tools.get(name)
        if tool is None:
            raise NotFound(f"no tool '{name}'", resource_type="tool", resource_name=name)
        if not reaches(tool, writer=writer, admin=admin):
            needed = {ADMIN} if tool.scope == ADMIN else WRITERS
            raise Denied(
                f"the scope does not reach tool '{name}': it changes things, or is for wider scopes alone",
                reason="SCOPE_MISSING",
                metadata={"method": CALL_TOOL, "scope": " ".join(sorted(needed))},
            )
        return tool

    async def call(
        self,
        tool: Tool,
        arguments: Mapping[str, Any],
        timeout_s: float,
        report: Report,
        log: Log = unheard,
        answered: Round | None = None,
    ) -> Outcome:
        """Check the arguments and run the tool; what the caller can mend comes back as an error outcome."""
        if not tool.foreign and (wrong := faults(tool.input_schema, arguments)):
            return _wrong("; ".join(wrong[:PROBLEMS_SHOWN]), wrong)
        timeout_s = min(timeout_s, TASK_MAX_S)
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await tool.handler(Call(arguments, timeout_s, report, log, answered or Round()))
        except TimeoutError:
            return Outcome(f"tool '{tool.name}' did not end within {timeout_s:g} s", is_error=True)
        except Invalid as error:
            return Outcome(error.message, is_error=True)
        return _as_promised(tool, outcome)


def _as_promised(tool: Tool, outcome: Outcome) -> Outcome:
    """The outcome, or an error in its place where the result is not what the tool's schema promises.

    Errors and questions to the caller promise nothing.
    """
    if tool.output_schema is None or outcome.is_error or outcome.asks or outcome.state:
        return outcome
    wrong = mismatches(tool.output_schema, outcome.structured)
    if not wrong:
        return outcome
    said = "; ".join(wrong[:PROBLEMS_SHOWN])
    logger.warning("a tool broke its output schema", extra={"tool": tool.name, "problems": said})
    return _wrong(f"tool '{tool.name}' ran, but its result breaks its own output schema: {said}", wrong)


def _wrong(text: str, problems_found: Sequence[str]) -> Outcome:
    return Outcome(text, {"problems": problems_found[:PROBLEMS_SHOWN]}, is_error=True)
