"""Plan what steps do to agents: from rows under lock to rows, events and instances. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from factory_server.core import ids
from factory_server.core.lifecycle import NEW_GENERATION, AgentEvent, advance
from factory_server.core.model import AgentRow, InstanceRow, InstanceState, SandboxFact, Step
from factory_server.store.encode import text
from hyperfactory.v1 import types_pb2

BUDGET_WINDOW_S = 600.0
"""Replacements are counted within 10 minutes."""
DEFAULT_BASE = "python"

E = AgentEvent
ENDS_INSTANCE = NEW_GENERATION | {E.DRAINED, E.GAVE_UP, E.TTL_EXPIRED}
KEEPS_LEASE = frozenset({E.TASK_ASSIGNED, E.SHUTDOWN})
"""A draining agent still works on its task: its holder must be known until the drain is over."""
WARM_CLAIM = "WarmClaim"

Changes = dict[str, Any]
"""Fields of a row, and what they become."""
Fence = tuple[str, int]
"""An agent in one generation."""


@dataclass(frozen=True, slots=True)
class Move:
    """One row of the table, carried out on one agent. `before` is None for an agent that is being made."""

    before: AgentRow | None
    event: AgentEvent
    after: AgentRow
    actor: str


@dataclass(slots=True)
class Plan:
    """What some steps come to."""

    moves: list[Move] = field(default_factory=list)
    outcomes: list[str | None] = field(default_factory=list)
    """One for each step: the agent's id, or None where the step lost."""
    agents: dict[str, AgentRow] = field(default_factory=dict)
    wanted: dict[Fence, str] = field(default_factory=dict)
    """Generations that need an instance, and of which base."""
    sandboxes: list[tuple[Fence, SandboxFact]] = field(default_factory=list)
    directs: list[tuple[Fence, str]] = field(default_factory=list)
    ended: list[Fence] = field(default_factory=list)
    """Fences up to which instances become DYING."""
    forgotten: list[Fence] = field(default_factory=list)
    """Fences up to which states of hibernation are not needed any more."""


def plan(
    agents: Iterable[AgentRow], steps: Sequence[Step], now: datetime, claimed: Mapping[Fence, InstanceRow]
) -> Plan:
    """Carry out steps on rows; `claimed` are warm instances for generations that are made here."""
    made = Plan(agents={agent.id: agent for agent in agents})
    for step in steps:
        before = made.agents.get(step.agent)
        if before is None or not _fits(before, step):
            made.outcomes.append(None)
            continue
        _carry_out(made, before, step, now)
        made.outcomes.append(step.agent)
        if step.event in NEW_GENERATION:
            begin(made, made.agents[step.agent], now, claimed, step.actor)
    return made


def begin(
    made: Plan, agent: AgentRow, now: datetime, claimed: Mapping[Fence, InstanceRow], actor: str
) -> None:
    """Give a new generation its instance: a warm one, or the wish for one."""
    fence = (agent.id, agent.generation)
    made.wanted[fence] = agent.spec.base or DEFAULT_BASE
    instance = claimed.get(fence)
    if instance is None:
        made.agents[agent.id] = replace(agent, instance=intent(agent))
        return
    target = advance(agent.state, E.INSTANCE_STARTED)
    if target is None:  # a woken agent is WARMING already: that it was warm goes with the step that woke it
        carried = made.agents[agent.id] = replace(agent, instance=instance, warm=True)
        made.moves[-1] = replace(made.moves[-1], after=carried)
        return
    why: Changes = {"reason": WARM_CLAIM, "message": "", "updated_at": now}
    after = replace(agent, instance=instance, warm=True, state=target, **why)
    made.agents[agent.id] = after
    made.moves.append(Move(agent, E.INSTANCE_STARTED, after, actor))


def intent(agent: AgentRow) -> InstanceRow:
    """The wish for an instance, named so that every attempt makes the same one."""
    return InstanceRow(
        id=ids.instance_id(agent.uid, agent.generation),
        base=agent.spec.base or DEFAULT_BASE,
        state=InstanceState.STARTING,
        agent=agent.id,
        generation=agent.generation,
    )


def batches(steps: Sequence[Step]) -> list[list[Step]]:
    """Cut steps where an agent comes again: what it may do then depends on what came of it before."""
    made: list[list[Step]] = []
    seen: set[str] = set()
    for step in steps:
        if not made or step.agent in seen:
            made.append([])
            seen = set()
        made[-1].append(step)
        seen.add(step.agent)
    return made


def rounds(moves: Sequence[Move]) -> list[list[Move]]:
    """Split moves so that no agent moves twice in one round; the order of each agent's moves stays."""
    made: list[list[Move]] = []
    count: dict[str, int] = {}
    for move in moves:
        place = count.get(move.after.id, 0)
        count[move.after.id] = place + 1
        if place == len(made):
            made.append([])
        made[place].append(move)
    return made


def base_of(spec: types_pb2.ProfileSpec) -> str:
    """The base that carries a profile."""
    return spec.base or DEFAULT_BASE


def _fits(agent: AgentRow, step: Step) -> bool:
    if agent.generation != step.generation or agent.state not in step.sources:
        return False
    if advance(agent.state, step.event) is None:
        return False
    if step.sandbox is None:
        return True
    # An instance that was given up meanwhile must not come back with its late answer.
    return agent.instance is not None and agent.instance.id == step.sandbox.instance


def _carry_out(made: Plan, before: AgentRow, step: Step, now: datetime) -> None:
    after = _after(before, step, now)
    fence = (before.id, before.generation)
    if step.sandbox is not None:
        made.sandboxes.append((fence, step.sandbox))
    if step.direct is not None and after.instance is not None:
        made.directs.append((fence, step.direct))
    if step.event in ENDS_INSTANCE:
        made.ended.append(fence)
    if step.event is E.DRAINED:
        made.forgotten.append(fence)
    elif step.event is E.HEALTH_OK and before.generation > 1:
        made.forgotten.append((before.id, before.generation - 1))
    made.agents[before.id] = after
    made.moves.append(Move(before, step.event, after, step.actor))


def _after(before: AgentRow, step: Step, now: datetime) -> AgentRow:
    """The row after a step. Its changes are collected first: copying a row is what a step's planning costs."""
    made: Changes = {"state": advance(before.state, step.event), "updated_at": now}
    made |= {"reason": text(step.reason), "message": text(step.message)}
    if step.event not in KEEPS_LEASE:
        made |= {"lease_holder": "", "lease_until": None}
    made |= {"frozen_at": None, "thaw_wanted": False}
    if step.not_before_s is not None:
        made["not_before"] = now + timedelta(seconds=step.not_before_s)
    made |= _carrier(before.instance, step) | _by_event(before, step, now)
    return replace(before, **made)


def _by_event(agent: AgentRow, step: Step, now: datetime) -> Changes:
    match step.event:
        case E.HEALTH_OK:
            return {"ready_at": now}
        case E.TASK_ASSIGNED:
            until = now + timedelta(seconds=step.lease_s or 0.0)
            return {"lease_holder": step.lease_holder or step.actor, "lease_until": until}
        case E.SHUTDOWN:
            return {"drain_until": now + timedelta(seconds=step.drain_s or 0.0)}
        case E.REPLACE:
            return _next_generation(agent) | _replacement(agent, now)
        case E.WAKE:
            return _next_generation(agent)
        case E.RETRY:
            forgiven: Changes = {"replacements": 0, "replaced_since": None}
            if step.not_before_s is None:
                forgiven["not_before"] = None
            return _next_generation(agent) | forgiven
        case E.TTL_EXPIRED | E.GAVE_UP | E.DRAINED:
            return {"instance": None, "warm": False, "ready_at": None}
        case _:
            return {}


def _carrier(instance: InstanceRow | None, step: Step) -> Changes:
    """What a step tells of the instance."""
    told: Changes = {}
    if (fact := step.sandbox) is not None:
        told = {"state": InstanceState.OWNED, "driver": fact.driver, "control": fact.control}
        told |= {"host_pid": fact.host_pid, "container_id": fact.container_id}
    if step.direct is not None:
        told["direct"] = step.direct
    return {"instance": replace(instance, **told)} if instance is not None and told else {}


def _next_generation(agent: AgentRow) -> Changes:
    made: Changes = {"generation": agent.generation + 1, "instance": None, "warm": False}
    return made | {"ready_at": None, "heartbeat_at": None, "misses": 0}


def _replacement(agent: AgentRow, now: datetime) -> Changes:
    """Count a replacement; a window that is over begins anew."""
    since = agent.replaced_since
    if since is None or now - since >= timedelta(seconds=BUDGET_WINDOW_S):
        return {"replacements": 1, "replaced_since": now}
    return {"replacements": agent.replacements + 1}
