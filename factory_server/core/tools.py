"""Tools as the registry sees them: public names, what an agent's report makes known, and what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from factory_server.core import scopes
from factory_server.core.errors import Denied
from factory_server.core.lifecycle import SERVING, TERMINAL, AgentState
from factory_server.core.model import AgentRow
from hyperfactory.v1 import agent_service_pb2, events_pb2, types_pb2
from wire.mcp.names import public_name

TOOLS_MAX = 512
"""Of one agent; what it says beyond that is not listed."""
REPORT_BYTES_MAX = 1 << 20
TOOL_NAME_MAX_CHARS = 128
CHANGED_NAMES_MAX = 100
CONDITIONS_MAX = 64
CONDITION_TYPE_MAX_CHARS = 128
CONDITION_TEXT_MAX_CHARS = 512
OURS = frozenset({"Healthy"})
"""What the factory itself says of an agent; no agent says it of itself."""
GONE = (AgentState.DRAINING, *TERMINAL)
"""States in which an agent's tools are not listed: it takes no call any more."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What one agent last said of its tools, and when."""

    agent: str
    crew: str
    generation: int
    revision: int
    tools: tuple[agent_service_pb2.Tool, ...]
    conditions: tuple[types_pb2.Condition, ...]
    heard_at: datetime
    heard_by: str
    """The factory process that heard it, as its leases name it."""

    @property
    def age(self) -> tuple[int, int]:
        """Orders what one agent said."""
        return self.generation, self.revision

    def report(self) -> agent_service_pb2.AgentReport:
        """The same as the contract has it."""
        return agent_service_pb2.AgentReport(
            revision=self.revision, tools=self.tools, conditions=self.conditions
        )


@dataclass(frozen=True, slots=True)
class KnownOffer:
    """An offer as stored. `heard`: the process that heard it still keeps the crew."""

    offer: Offer
    heard: bool


@dataclass(frozen=True, slots=True)
class OfferDelta:
    """Offers that changed since a mark, and the next mark. Repeats are possible, omissions are not."""

    offers: Sequence[KnownOffer]
    mark: str


class ToolStore(Protocol):
    """What agents said of their tools."""

    async def record_offers(self, crew: str, offers: Sequence[Offer]) -> None:
        """Write what agents of a crew say now, with a TOOLS event for each that says something else than before.
        An offer of another generation than the agent's, of an agent on its way out, or older than what is
        known, is left out. NotFound."""

    async def offer_delta(self, mark: str) -> OfferDelta:
        """Offers that changed since `mark` ('' for all of agents that are not STOPPED)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tool of one agent, under its public name."""

    crew: str
    name: str
    tool: agent_service_pb2.Tool
    agent: str
    agent_name: str
    generation: int
    heard_at: datetime
    stale: bool

    @property
    def place(self) -> str:
        """Where it stands in a list of all, as page tokens say it."""
        return f"{self.crew}/{self.name}"

    def is_as(self, other: Entry | None) -> bool:
        """Whether only the time at which it was heard may differ: a watcher is not told of that."""
        return other is self or (other is not None and replace(self, heard_at=other.heard_at) == other)


def offered(
    agent: str,
    crew: str,
    generation: int,
    report: agent_service_pb2.AgentReport,
    *,
    heard_at: datetime,
    heard_by: str,
) -> Offer:
    """What a report makes known: each name once, by name, and no more than the registry takes of one agent."""
    tools: dict[str, agent_service_pb2.Tool] = {}
    left_bytes = REPORT_BYTES_MAX
    for tool in report.tools:
        left_bytes -= tool.ByteSize()
        if len(tools) >= TOOLS_MAX or left_bytes < 0:
            break
        if 0 < len(tool.name) <= TOOL_NAME_MAX_CHARS:
            tools.setdefault(tool.name, tool)
    conditions = tuple(_short(c) for c in report.conditions[:CONDITIONS_MAX] if _sayable(c))
    named = tuple(tools[name] for name in sorted(tools))
    return Offer(agent, crew, generation, report.revision, named, conditions, heard_at, heard_by)


def _sayable(condition: types_pb2.Condition) -> bool:
    return 0 < len(condition.type) <= CONDITION_TYPE_MAX_CHARS and condition.type not in OURS


def _short(condition: types_pb2.Condition) -> types_pb2.Condition:
    short = types_pb2.Condition()
    short.CopyFrom(condition)
    short.reason = short.reason[:CONDITION_TYPE_MAX_CHARS]
    short.message = short.message[:CONDITION_TEXT_MAX_CHARS]
    return short


def entries(agent: AgentRow, offer: Offer, *, heard: bool) -> tuple[Entry, ...]:
    """The agent's tools as the registry lists them; none where the agent takes no call any more."""
    if agent.state in GONE:
        return ()
    stale = not heard or agent.state not in SERVING or offer.generation != agent.generation
    return tuple(
        Entry(
            crew=agent.crew,
            name=public_name(agent.name, tool.name),
            tool=tool,
            agent=agent.id,
            agent_name=agent.name,
            generation=offer.generation,
            heard_at=offer.heard_at,
            stale=stale,
        )
        for tool in offer.tools
    )


def by_name(listed: Iterable[Entry]) -> dict[str, Entry]:
    """A crew's tools in the order of lists. Should two hashes ever be alike, the older agent keeps the name:
    ids sort by creation."""
    found: dict[str, Entry] = {}
    for entry in sorted(listed, key=lambda e: (e.name, e.agent, e.tool.name)):
        found.setdefault(entry.name, entry)
    return found


def asked(tool: agent_service_pb2.Tool) -> str:
    """The least scope that may use the tool: its effect asks for one, and it may ask for more."""
    least = scopes.by_effect(read_only=tool.read_only)
    return max(least, tool.scope or least, key=scopes.width)


def may_use(tool: agent_service_pb2.Tool, held: Iterable[str]) -> bool:
    """Whether these scopes see and call the tool."""
    return scopes.width(scopes.widest(held) or "reviewer") >= scopes.width(asked(tool))


def check_use(name: str, tool: agent_service_pb2.Tool, held: Iterable[str]) -> None:
    """Denied where these scopes do not reach the tool."""
    if not may_use(tool, held):
        needed = asked(tool)
        able = [scope for scope in reversed(scopes.SCOPES) if scopes.width(scope) >= scopes.width(needed)]
        raise Denied(
            f"the token's scope does not reach tool '{name}': it asks for '{needed}'",
            reason="SCOPE_MISSING",
            metadata={"tool": name, "scope": " ".join(able)},
        )


def change(
    before: Iterable[agent_service_pb2.Tool], after: Iterable[agent_service_pb2.Tool], generation: int
) -> events_pb2.ToolsChange | None:
    """What an event says of the step from one offer to the next; None where nothing changed. A tool that is
    another one now under the same name went and came."""
    was: Mapping[str, agent_service_pb2.Tool] = {tool.name: tool for tool in before}
    now: Mapping[str, agent_service_pb2.Tool] = {tool.name: tool for tool in after}
    added = sorted(name for name, tool in now.items() if was.get(name) != tool)
    removed = sorted(name for name, tool in was.items() if now.get(name) != tool)
    if not added and not removed:
        return None
    return events_pb2.ToolsChange(
        generation=generation,
        count=len(now),
        added=added[:CHANGED_NAMES_MAX],
        removed=removed[:CHANGED_NAMES_MAX],
    )


def turned(
    before: Iterable[types_pb2.Condition], after: Iterable[types_pb2.Condition]
) -> list[types_pb2.Condition]:
    """The conditions that are others than before; a new sentence for the same reason is none."""
    was = {c.type: (c.status, c.reason) for c in before}
    return [c for c in after if was.get(c.type) != (c.status, c.reason)]
