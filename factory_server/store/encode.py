"""Make the events that the store appends by itself, and put stored ones together again."""

from __future__ import annotations

from datetime import datetime

from psycopg.rows import DictRow

from factory_server.core.lifecycle import AgentEvent, AgentState, CrewState
from factory_server.core.model import EncodedEvent
from hyperfactory.v1 import events_pb2, types_pb2


def agent_moved(
    *,
    agent: str,
    name: str,
    source: AgentState | None,
    event: AgentEvent,
    target: AgentState,
    generation: int,
    actor: str,
    reason: str,
    message: str,
) -> events_pb2.Event:
    """An agent moved."""
    step = events_pb2.AgentStep(
        to=types_pb2.AgentState.Value(f"AGENT_STATE_{target}"),
        event=event,
        generation=generation,
        reason=reason,
        message=message,
        name=name,
    )
    if source is not None:
        setattr(step, "from", types_pb2.AgentState.Value(f"AGENT_STATE_{source}"))
    return events_pb2.Event(type=events_pb2.EVENT_TYPE_AGENT_STATE, actor=actor, agent=agent, agent_step=step)


def crew_moved(
    source: CrewState | None, target: CrewState, actor: str, reason: str, message: str
) -> events_pb2.Event:
    """A crew moved."""
    step = events_pb2.CrewStep(
        to=types_pb2.CrewState.Value(f"CREW_STATE_{target}"), reason=reason, message=message
    )
    if source is not None:
        setattr(step, "from", types_pb2.CrewState.Value(f"CREW_STATE_{source}"))
    return events_pb2.Event(type=events_pb2.EVENT_TYPE_CREW_STATE, actor=actor, crew_step=step)


def agent_frozen(
    agent: str, actor: str, now: datetime, reason: str, message: str, *, frozen: bool
) -> events_pb2.Event:
    """An agent was frozen in place, or is frozen no more."""
    status = types_pb2.CONDITION_STATUS_TRUE if frozen else types_pb2.CONDITION_STATUS_FALSE
    condition = types_pb2.Condition(type="Frozen", status=status, reason=reason, message=text(message))
    condition.since.FromDatetime(now)
    return events_pb2.Event(
        type=events_pb2.EVENT_TYPE_CONDITION, actor=actor, agent=agent, condition=condition
    )


def stored(event: events_pb2.Event) -> bytes:
    """What is kept of an event: all but what the row itself says."""
    kept = events_pb2.Event()
    kept.CopyFrom(event)
    for field in ("crew", "sequence", "time"):
        kept.ClearField(field)
    return kept.SerializeToString()


def encoded(r: DictRow) -> EncodedEvent:
    """A stored event as a whole message: serialised messages merge when their bytes are joined."""
    place = _place(r["crew"], r["sequence"], r["time"])
    return EncodedEvent(r["crew"], r["sequence"], r["type"], r["agent"], place + r["data"])


def _place(crew: str, sequence: int, time: datetime) -> bytes:
    event = events_pb2.Event(crew=crew, sequence=sequence)
    event.time.FromDatetime(time)
    return event.SerializeToString()


def text(value: str) -> str:
    """A text as the database can keep it: the zero character is the one it cannot."""
    return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")
