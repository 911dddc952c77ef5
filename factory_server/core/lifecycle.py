"""The agent's lifecycle: one transition table, from which `advance`, the SQL guard, the picture in
docs/lifecycle.md and the property tests are made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class AgentState(StrEnum):
    """Where an agent is; the names are the contract's without their prefix."""

    PROVISIONING = "PROVISIONING"
    WARMING = "WARMING"
    READY = "READY"
    BUSY = "BUSY"
    HIBERNATING = "HIBERNATING"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class AgentEvent(StrEnum):
    """What moves an agent."""

    REQUESTED = "requested"
    INSTANCE_STARTED = "instance_started"
    HEALTH_OK = "health_ok"
    TASK_ASSIGNED = "task_assigned"
    TASK_COMPLETED = "task_completed"
    TTL_EXPIRED = "ttl_expired"
    WAKE = "wake"
    HEALTH_FAILED = "health_failed"
    REPLACE = "replace"
    GAVE_UP = "gave_up"
    RETRY = "retry"
    SHUTDOWN = "shutdown"
    DRAINED = "drained"


class CrewState(StrEnum):
    """Where a crew is, derived from its members and its wish."""

    ASSEMBLING = "ASSEMBLING"
    READY = "READY"
    DEGRADED = "DEGRADED"
    DRAINING = "DRAINING"
    DISBANDED = "DISBANDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table; `source` is None for an agent that does not exist yet."""

    source: AgentState | None
    event: AgentEvent
    target: AgentState
    raised_by: str


S, E = AgentState, AgentEvent
LIVE = (S.PROVISIONING, S.WARMING, S.READY, S.BUSY, S.HIBERNATING, S.UNHEALTHY)
"""States that a shutdown leaves."""
TERMINAL = (S.STOPPED, S.FAILED)
SERVING = (S.READY, S.BUSY)
"""States in which an agent answers calls."""
CREW_ENDED = (CrewState.DISBANDED, CrewState.FAILED)
"""Terminal states of a crew."""

TABLE: tuple[Transition, ...] = (
    Transition(None, E.REQUESTED, S.PROVISIONING, "assemble, spawn, scale"),
    Transition(S.PROVISIONING, E.INSTANCE_STARTED, S.WARMING, "reconciler: the runtime answers"),
    Transition(S.WARMING, E.HEALTH_OK, S.READY, "reconciler: assumed and serving"),
    Transition(S.READY, E.TASK_ASSIGNED, S.BUSY, "a task's lock was acquired"),
    Transition(S.BUSY, E.TASK_COMPLETED, S.READY, "the lock was released, or its lease ran out"),
    Transition(S.READY, E.TTL_EXPIRED, S.HIBERNATING, "idle longer than the profile's ttl"),
    Transition(S.HIBERNATING, E.WAKE, S.WARMING, "a call, a message or an operator"),
    Transition(S.WARMING, E.HEALTH_FAILED, S.UNHEALTHY, "the instance died or is silent"),
    Transition(S.READY, E.HEALTH_FAILED, S.UNHEALTHY, "the instance died or is silent"),
    Transition(S.BUSY, E.HEALTH_FAILED, S.UNHEALTHY, "the instance died or is silent"),
    Transition(S.UNHEALTHY, E.REPLACE, S.PROVISIONING, "reconciler: generation + 1"),
    Transition(S.PROVISIONING, E.GAVE_UP, S.FAILED, "budget spent, or profile broken"),
    Transition(S.WARMING, E.GAVE_UP, S.FAILED, "budget spent, or profile broken"),
    Transition(S.UNHEALTHY, E.GAVE_UP, S.FAILED, "budget spent, or profile broken"),
    Transition(S.FAILED, E.RETRY, S.PROVISIONING, "operator"),
    *(Transition(state, E.SHUTDOWN, S.DRAINING, "stop, disband, scale down") for state in LIVE),
    Transition(S.FAILED, E.SHUTDOWN, S.DRAINING, "disband"),
    Transition(S.DRAINING, E.DRAINED, S.STOPPED, "nothing of it exists any more"),
)

_NEXT = {(t.source, t.event): t.target for t in TABLE}

NEW_GENERATION = frozenset({E.REPLACE, E.WAKE, E.RETRY})
"""Events after which another instance carries the agent."""


def advance(state: AgentState | None, event: AgentEvent) -> AgentState | None:
    """The state after `event`, or None where the table has no such row."""
    return _NEXT.get((state, event))


def crew_state(
    now: CrewState, wish_gone: bool, failed: bool, members: Iterable[AgentState], min_ready: int
) -> CrewState:
    """A crew's state from its members and its wish.

    `failed` says that assembly was given up, so that the end is FAILED instead of DISBANDED. `min_ready` of
    0 means all members.
    """
    states = list(members)
    if wish_gone:
        gone = all(s is S.STOPPED for s in states)
        if not gone:
            return CrewState.DRAINING
        return CrewState.FAILED if failed else CrewState.DISBANDED
    kept = [s for s in states if s is not S.STOPPED and s is not S.DRAINING]
    good = sum(s in (S.READY, S.BUSY, S.HIBERNATING) for s in kept)
    needed = min(min_ready or len(kept), len(kept))
    if now is CrewState.ASSEMBLING:
        return CrewState.READY if good == len(kept) else CrewState.ASSEMBLING
    return CrewState.READY if good >= needed else CrewState.DEGRADED
