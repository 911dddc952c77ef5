"""Decide what an agent needs next, from its row, its crew's row and the time: the reconciler's judgement."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.model import AgentRow, CrewRow, InstanceState
from hyperfactory.v1 import crew_service_pb2

READY_TIMEOUT_S = 30.0
MAX_REPLACEMENTS = 5
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 30.0
BUDGET_WINDOW_S = 600.0
"""Replacements are counted within 10 minutes (design, crash loops)."""


HEARD_S = 1.0
"""After so long everybody has heard that an agent is frozen: gateway, watchdog, mates, other replicas."""
RESTING = (CrewState.READY, CrewState.DEGRADED)
"""Crews whose members may hibernate: neither being made nor on their way out."""


class Job(StrEnum):
    """What the reconciler does for an agent."""

    NONE = "none"
    CREATE = "create"
    ASSUME = "assume"
    ATTEND = "attend"
    RELEASE = "release"
    REPLACE = "replace"
    GIVE_UP = "give_up"
    DISBAND = "disband"
    DRAIN = "drain"
    HIBERNATE = "hibernate"
    FREEZE = "freeze"
    HOLD = "hold"
    """Stop the processes of one whose row says that it is frozen."""
    THAW = "thaw"


@dataclass(frozen=True, slots=True)
class Decision:
    """A job, and when it is due (None: now). `reason` and `message` say why where a step follows from it."""

    job: Job
    due: datetime | None = None
    reason: str = ""
    message: str = ""


def decide(agent: AgentRow, crew: CrewRow, now: datetime) -> Decision:
    """The next job of an agent; the same answer however often it is asked."""
    match agent.state:
        case AgentState.PROVISIONING:
            return _provision(agent, crew, now)
        case AgentState.WARMING if _wished(agent):
            return Decision(Job.CREATE, due=agent.not_before)
        case AgentState.WARMING:
            return _warm(agent, crew, now)
        case AgentState.BUSY if agent.lease_until is not None and agent.lease_until <= now:
            return Decision(Job.RELEASE, reason="LeaseExpired", message="the task's lease ran out")
        case AgentState.READY if agent.frozen_at is not None and agent.thaw_wanted:
            return Decision(Job.THAW)
        case AgentState.READY if _rests(agent, crew, now):
            return Decision(Job.HIBERNATE, reason="Idle", message="idle longer than its profile's ttl")
        case AgentState.READY if agent.frozen_at is not None:
            return Decision(Job.HOLD, due=agent.frozen_at + timedelta(seconds=HEARD_S))
        case AgentState.READY if _freezes(agent, crew, now):
            return Decision(Job.FREEZE, reason="Idle", message="idle longer than its profile's freeze_after")
        case AgentState.READY | AgentState.BUSY:
            return Decision(Job.ATTEND)
        case AgentState.UNHEALTHY:
            return _heal(agent, crew)
        case AgentState.DRAINING:
            return Decision(Job.DRAIN)
        case AgentState.HIBERNATING | AgentState.STOPPED | AgentState.FAILED:
            return Decision(Job.NONE)


def _wished(agent: AgentRow) -> bool:
    """Woken while no warm instance was there: WARMING, and its own is still to be made."""
    return agent.instance is not None and agent.instance.state is InstanceState.STARTING


def _rests(agent: AgentRow, crew: CrewRow, now: datetime) -> bool:
    """At `now == deadline` it has been idle for long enough."""
    until = idle_until(agent)
    return crew.state in RESTING and until is not None and until <= now


def idle_until(agent: AgentRow) -> datetime | None:
    """When a READY agent may hibernate at the earliest; None: never, or not from here.

    A READY agent moved last when it became READY: woken, or at the end of a task or lease. Signals and calls
    move nothing: of those its instance knows, and refuses to be suspended before it was idle for the ttl.
    """
    if agent.state is not AgentState.READY or not agent.spec.HasField("idle_ttl"):
        return None
    return agent.updated_at + agent.spec.idle_ttl.ToTimedelta()


def _freezes(agent: AgentRow, crew: CrewRow, now: datetime) -> bool:
    until = frozen_from(agent)
    return crew.state in RESTING and until is not None and until <= now


def frozen_from(agent: AgentRow) -> datetime | None:
    """When a READY agent may be frozen at the earliest; None: never, or it is."""
    if agent.state is not AgentState.READY or agent.frozen_at is not None:
        return None
    return (
        agent.updated_at + agent.spec.freeze_after.ToTimedelta()
        if agent.spec.HasField("freeze_after")
        else None
    )


def rests_at(agent: AgentRow, now: datetime) -> datetime | None:
    """When to look whether the agent may be frozen or hibernate, if that is still to come."""
    coming = [at for at in (frozen_from(agent), idle_until(agent)) if at is not None and at > now]
    return min(coming, default=None)


def _provision(agent: AgentRow, crew: CrewRow, now: datetime) -> Decision:
    if crew.state is CrewState.ASSEMBLING and overdue(agent, now):
        return _timed_out(agent, "no instance within the ready timeout")
    return Decision(Job.CREATE, due=agent.not_before)


def _warm(agent: AgentRow, crew: CrewRow, now: datetime) -> Decision:
    """Nothing is said here about a live crew: its member may wait for a bus that is away."""
    if crew.state is CrewState.ASSEMBLING and overdue(agent, now):
        return _timed_out(agent, "not assumed within the ready timeout")
    return Decision(Job.ASSUME)


def _timed_out(agent: AgentRow, message: str) -> Decision:
    return Decision(Job.GIVE_UP, reason="ReadyTimeout", message=agent.message or message)


def _heal(agent: AgentRow, crew: CrewRow) -> Decision:
    """Replace, give up, or end the crew, as its policy and the agent's budget say."""
    policy = crew.manifest.policy.on_member_failure
    if policy == crew_service_pb2.MEMBER_FAILURE_LEAVE:
        return Decision(Job.GIVE_UP, reason="LeftByPolicy", message="the crew's policy leaves lost members")
    if policy == crew_service_pb2.MEMBER_FAILURE_DISBAND and crew.state is not CrewState.ASSEMBLING:
        return Decision(Job.DISBAND, reason="MemberLost", message=f"{agent.name} was lost: {agent.message}")
    spent = replacements_now(agent, agent.updated_at)
    if spent >= (agent.spec.max_replacements or MAX_REPLACEMENTS):
        return Decision(
            Job.GIVE_UP,
            reason="BudgetSpent",
            message=f"{spent} replacements within 10 min; last: {agent.message}",
        )
    return Decision(Job.REPLACE, due=agent.updated_at + timedelta(seconds=backoff_s(spent)))


def given_up(agent: AgentRow, crew: CrewRow | None, now: datetime) -> bool:
    """Whether an agent that cannot be made has used up its time."""
    return crew is not None and decide(agent, crew, now).job is Job.GIVE_UP


def replacements_now(agent: AgentRow, at: datetime) -> int:
    """Replacements within the present window."""
    since = agent.replaced_since
    if since is None or at - since >= timedelta(seconds=BUDGET_WINDOW_S):
        return 0
    return agent.replacements


def backoff_s(replacements: int) -> float:
    """The first replacement is immediate, then 0.2 s, 0.4 s … to 30 s."""
    if replacements == 0:
        return 0.0
    return min(BACKOFF_FIRST_S * float(2 ** (replacements - 1)), BACKOFF_MAX_S)


def create_backoff_s(attempt: int) -> float:
    """Pause after the n-th failed attempt (from 1) to make an instance."""
    return min(BACKOFF_FIRST_S * float(2 ** (attempt - 1)), BACKOFF_MAX_S)


def ready_timeout_s(agent: AgentRow) -> float:
    """How long an instance may take from start to READY."""
    spec = agent.spec
    if not spec.HasField("ready_timeout"):
        return READY_TIMEOUT_S
    return spec.ready_timeout.ToTimedelta().total_seconds()


def overdue(agent: AgentRow, now: datetime) -> bool:
    """Whether it has been in its state for the ready timeout; at `now == deadline` it has."""
    return now - agent.updated_at >= timedelta(seconds=ready_timeout_s(agent))


def crew_expired(crew: CrewRow, now: datetime) -> bool:
    """At `now == expires_at` it has expired."""
    return not crew.wish_gone and crew.expires_at is not None and crew.expires_at <= now
