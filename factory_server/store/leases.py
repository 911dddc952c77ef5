"""Lend agents to callers for a time, and crews to reconcilers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from factory_server.core.errors import Refused
from factory_server.core.lifecycle import AgentEvent, AgentState
from factory_server.core.model import AgentRow, RequestKey, Step
from factory_server.store.locked import LockedCrew, lock_agent
from factory_server.store.pool import Part, Transaction, columns
from factory_server.store.requests import claim_request

WORKING = (AgentState.BUSY, AgentState.DRAINING)
"""States in which an agent has a holder: a draining one still ends its task."""


class Leases(Part):
    """The lock of a task on an agent, and the reconciler's lease on a crew."""

    async def acquire(
        self, agent: str, request: RequestKey | None, actor: str, *, holder: str, lease_s: float
    ) -> AgentRow:
        """READY → BUSY for `holder`."""

        async def body(transaction: Transaction) -> AgentRow:
            crew, row = await lock_agent(transaction, agent)
            if await claim_request(transaction, request, agent) is not None:
                return row
            await assign(crew, row, actor, holder=holder, lease_s=lease_s)
            await crew.finish()
            return crew.agents[agent]

        return await self._db.run(body)

    async def renew(
        self,
        agent: str,
        generation: int,
        request: RequestKey | None,
        actor: str,
        *,
        holder: str,
        lease_s: float,
    ) -> AgentRow:
        """Prolong a lease."""

        async def body(transaction: Transaction) -> AgentRow:
            crew, row = await lock_agent(transaction, agent)
            if await claim_request(transaction, request, agent) is not None:
                return row
            _check_held(row, generation, holder)
            await _set_lease(crew, row, holder, crew.now + timedelta(seconds=lease_s))
            return crew.agents[agent]

        return await self._db.run(body)

    async def release(
        self, agent: str, generation: int, request: RequestKey | None, actor: str, *, holder: str
    ) -> AgentRow:
        """BUSY → READY by the holder."""

        async def body(transaction: Transaction) -> AgentRow:
            crew, row = await lock_agent(transaction, agent)
            if await claim_request(transaction, request, agent) is not None:
                return row
            if row.state is AgentState.READY and row.generation == generation:
                return row
            _check_held(row, generation, holder)
            await give_back(crew, row, actor, reason="Released")
            await crew.finish()
            return crew.agents[agent]

        return await self._db.run(body)

    async def lease_crews(self, owner: str, *, lease_s: float, limit: int) -> Sequence[str]:
        """Take or prolong the reconciler's lease on crews that are not settled."""

        async def body(transaction: Transaction) -> Sequence[str]:
            rows = await transaction.rows("crews_lease", owner=owner, lease_s=lease_s, limit=limit)
            return columns(rows, "id")

        return await self._db.run(body)

    async def release_crews(self, owner: str) -> None:
        """Give all leases of this owner back."""

        async def body(transaction: Transaction) -> None:
            await transaction.send("crews_release", owner=owner)

        await self._db.run(body)


async def assign(crew: LockedCrew, agent: AgentRow, actor: str, *, holder: str, lease_s: float) -> None:
    """READY → BUSY; a lease that ran out is ended first, as its holder is taken for dead."""
    steps = []
    if agent.state is AgentState.BUSY and agent.lease_until is not None and agent.lease_until <= crew.now:
        steps.append(_step(agent, AgentEvent.TASK_COMPLETED, actor, "LeaseExpired"))
    elif agent.state is AgentState.BUSY:
        raise Refused(
            f"cannot acquire agent '{agent.id}': '{agent.lease_holder}' holds it",
            reason="LEASE_HELD",
            metadata={"holder": agent.lease_holder},
        )
    elif agent.state is not AgentState.READY:
        raise wrong_state(agent, "acquire")
    elif agent.frozen_at is not None:
        raise Refused(
            f"cannot acquire agent '{agent.id}': it is frozen",
            metadata={"state": agent.state, "frozen": "true"},
        )
    assigned = _step(agent, AgentEvent.TASK_ASSIGNED, actor, "TaskAssigned")
    steps.append(replace(assigned, sources=(AgentState.READY,), lease_holder=holder, lease_s=lease_s))
    await crew.take(steps)


async def give_back(crew: LockedCrew, agent: AgentRow, actor: str, *, reason: str) -> None:
    """End a lease: BUSY → READY, while a draining agent only loses its holder."""
    if agent.state is AgentState.DRAINING:
        await _set_lease(crew, agent, "", None)
    else:
        await crew.take([_step(agent, AgentEvent.TASK_COMPLETED, actor, reason)])


def wrong_state(agent: AgentRow, verb: str) -> Refused:
    """The agent's state does not allow it."""
    return Refused(f"cannot {verb} agent '{agent.id}': it is {agent.state}", metadata={"state": agent.state})


async def _set_lease(crew: LockedCrew, agent: AgentRow, holder: str, until: datetime | None) -> None:
    crew.transaction.agents = True
    await crew.transaction.rows(
        "agent_lease", agent=agent.id, generation=agent.generation, holder=holder, until=until
    )
    crew.agents[agent.id] = replace(agent, lease_holder=holder, lease_until=until)


def _check_held(agent: AgentRow, generation: int, holder: str) -> None:
    if agent.generation != generation:
        raise Refused(
            f"cannot keep agent '{agent.id}': generation {generation} is not {agent.generation}",
            reason="STALE_GENERATION",
            metadata={"generation": str(agent.generation)},
        )
    if agent.state not in WORKING or not agent.lease_holder:
        raise wrong_state(agent, "keep")
    if agent.lease_holder != holder:
        raise Refused(
            f"cannot keep agent '{agent.id}': '{agent.lease_holder}' holds it",
            reason="LEASE_HELD",
            metadata={"holder": agent.lease_holder},
        )


def _step(agent: AgentRow, event: AgentEvent, actor: str, reason: str) -> Step:
    return Step(agent.id, agent.generation, (agent.state,), event, actor, reason=reason)
