"""Say each event in one line."""

from __future__ import annotations

import json
from collections.abc import Callable

from factory_cli.output import enum_name, free_json
from hyperfactory.v1 import events_pb2

NOTE_MAX_CHARS = 100


class Narrator:
    """Tells events; it remembers agents' names, which only some events carry."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._tellers: dict[str, Callable[[events_pb2.Event], str]] = {
            "crew_step": _crew_step,
            "agent_step": _agent_step,
            "signal": _signal,
            "receipt": _receipt,
            "task": _task,
            "context": _context,
            "skill": _skill,
            "tools": _tools,
            "condition": _condition,
        }

    def tell(self, event: events_pb2.Event) -> str:
        """Write one event as a line."""
        kind = event.WhichOneof("payload") or ""
        if kind == "agent_step":
            self._names[event.agent] = event.agent_step.name
        elif kind == "receipt" and event.receipt.name:
            self._names[event.agent] = event.receipt.name
        who = self._names.get(event.agent, event.agent) or "crew"
        teller = self._tellers.get(kind)
        what = teller(event) if teller else enum_name(event, "type")
        moment = event.time.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
        return f"{moment} #{event.sequence:<4} {who:<12} {what}"


def _moved(before: str, after: str, why: str) -> str:
    arrow = after if before == "UNSPECIFIED" else f"{before} → {after}"
    return f"{arrow}  ({why})" if why else arrow


def _crew_step(event: events_pb2.Event) -> str:
    step = event.crew_step
    why = step.message or step.reason
    return _moved(enum_name(step, "from"), enum_name(step, "to"), _short(why))


def _agent_step(event: events_pb2.Event) -> str:
    step = event.agent_step
    why = ", ".join(part for part in (step.event, step.message or step.reason) if part)
    moved = _moved(enum_name(step, "from"), enum_name(step, "to"), _short(why))
    return f"{moved} generation {step.generation}"


def _signal(event: events_pb2.Event) -> str:
    return f"signal {event.signal.signal} to {event.signal.targets} agents"


def _receipt(event: events_pb2.Event) -> str:
    receipt = event.receipt
    latency_ms = receipt.latency.ToMilliseconds()
    return f"receipt {enum_name(receipt, 'stage')} after {latency_ms} ms {_short(receipt.error.message)}".rstrip()


def _skill(event: events_pb2.Event) -> str:
    return f"{'mounted' if event.skill.mounted else 'unmounted'} {event.skill.skill}"


def _task(event: events_pb2.Event) -> str:
    return (
        f"task {event.task.task} {enum_name(event.task, 'phase')} {_short(event.task.error.message)}".rstrip()
    )


def _context(event: events_pb2.Event) -> str:
    change = event.context
    value = json.dumps(free_json(change.value), ensure_ascii=False) if change.HasField("value") else "removed"
    return f"context {change.key} v{change.version} = {_short(value)}"


def _tools(event: events_pb2.Event) -> str:
    change = event.tools
    names = [f"+{name}" for name in change.added] + [f"-{name}" for name in change.removed]
    return f"offers {change.count} tools {_short(' '.join(names))}"


def _condition(event: events_pb2.Event) -> str:
    condition = event.condition
    why = f"{condition.reason} {_short(condition.message)}".strip()
    return f"{condition.type} {enum_name(condition, 'status')} ({why})"


def _short(text: str) -> str:
    return text if len(text) <= NOTE_MAX_CHARS else text[: NOTE_MAX_CHARS - 1] + "…"
