"""Give tasks to agents, and end each of them once."""

from __future__ import annotations

from collections.abc import Sequence

from google.rpc import code_pb2
from psycopg.rows import DictRow

from factory_server.core.errors import NotFound, Refused
from factory_server.core.lifecycle import AgentState
from factory_server.core.model import AgentRow, RequestKey, TaskRow
from factory_server.store.broadcasts import new_id
from factory_server.store.leases import WORKING, assign, give_back
from factory_server.store.locked import LockedCrew, lock_crew
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request
from hyperfactory.v1 import agent_service_pb2, events_pb2

ASSIGNED = "ASSIGNED"


class Tasks(Part):
    """Tasks and the leases they hold."""

    async def open_task(
        self,
        crew: str,
        agents: Sequence[str],
        request: RequestKey,
        actor: str,
        *,
        input: bytes,
        timeout_s: float,
        lease_s: float,
    ) -> tuple[TaskRow, bool]:
        """Acquire the first READY agent for a new task; second value: joined."""

        async def body(transaction: Transaction) -> tuple[TaskRow, bool]:
            locked = await lock_crew(transaction, crew, list(agents))
            fresh = new_id("t", locked.now)
            earlier = await claim_request(transaction, request, fresh)
            if earlier is not None:
                return await _read(transaction, earlier), True
            agent = _choose(locked, agents)
            await assign(locked, agent, actor, holder=holder_of(fresh), lease_s=lease_s)
            row = await transaction.one(
                "task_insert",
                id=fresh,
                crew=crew,
                agent=agent.id,
                generation=agent.generation,
                input=input,
                actor=actor,
                now=locked.now,
                timeout_s=timeout_s,
            )
            locked.events.append(_event(row, actor))
            await locked.finish()
            return _task_row(row), False

        return await self._db.run(body)

    async def close_task(self, task: str, *, phase: str, result: bytes) -> TaskRow:
        """End a task once, and give its agent back."""

        async def body(transaction: Transaction) -> TaskRow:
            known = await _read(transaction, task)
            if known.phase != ASSIGNED:
                return known
            locked = await lock_crew(transaction, known.crew, [known.agent])
            row = await transaction.row("task_close", task=task, phase=phase, result=result, now=locked.now)
            if row is None:
                return await _read(transaction, task)
            agent = locked.agents[known.agent]
            locked.events.append(_event(row, f"crew/{locked.id}/agent/{agent.name}"))
            if _holds(agent, known):
                await give_back(locked, agent, "factory", reason="TaskEnded")
            await locked.finish()
            return _task_row(row)

        return await self._db.run(body)

    async def renew_task(self, task: str, *, lease_s: float) -> bool:
        """Prolong the lease of the task's agent; False where the task no longer holds it."""

        async def body(transaction: Transaction) -> bool:
            renewed = await transaction.row("task_renew", task=task, holder=holder_of(task), lease_s=lease_s)
            transaction.agents = renewed is not None
            return renewed is not None

        return await self._db.run(body)

    async def get_task(self, task: str) -> TaskRow:
        """Return a task."""

        async def body(transaction: Transaction) -> TaskRow:
            return await _read(transaction, task)

        return await self._db.read(body)

    async def agent_tasks(self, agent: str, limit: int, *, results: bool) -> Sequence[TaskRow]:
        """Return the newest tasks of an agent, newest first."""

        async def body(transaction: Transaction) -> Sequence[TaskRow]:
            rows = await transaction.rows("tasks_of_agent", agent=agent, limit=limit, results=results)
            return [_task_row(row) for row in rows]

        return await self._db.read(body)

    async def open_tasks(self, crew: str) -> Sequence[TaskRow]:
        """Return tasks that have not ended."""

        async def body(transaction: Transaction) -> Sequence[TaskRow]:
            return [_task_row(row) for row in await transaction.rows("tasks_open", crew=crew)]

        return await self._db.read(body)


def holder_of(task: str) -> str:
    """How a task is called as the holder of an agent."""
    return f"task/{task}"


def _choose(crew: LockedCrew, agents: Sequence[str]) -> AgentRow:
    """The first READY agent, or why there is none."""
    known = [crew.agents[agent] for agent in agents if agent in crew.agents]
    for agent in known:
        if agent.state is AgentState.READY and agent.frozen_at is None:
            return agent
    if known and all(agent.state is AgentState.BUSY for agent in known):
        raise Refused(
            f"cannot give a task to crew '{crew.id}': every agent asked for is BUSY",
            reason="LEASE_HELD",
            metadata={"holder": known[0].lease_holder},
        )
    state = str(known[0].state) if known else ""
    raise Refused(
        f"cannot give a task to crew '{crew.id}': no agent asked for is READY", metadata={"state": state}
    )


def _holds(agent: AgentRow, task: TaskRow) -> bool:
    held = agent.lease_holder == holder_of(task.id) and agent.generation == task.generation
    return held and agent.state in WORKING


async def _read(transaction: Transaction, task: str) -> TaskRow:
    row = await transaction.row("task_get", task=task)
    if row is None:
        raise NotFound(f"no task '{task}'", resource_type="task", resource_name=task)
    return _task_row(row)


def _event(row: DictRow, actor: str) -> events_pb2.Event:
    step = events_pb2.TaskStep(task=row["id"], phase=events_pb2.TaskPhase.Value(f"TASK_PHASE_{row['phase']}"))
    status = agent_service_pb2.TaskResult.FromString(row["result"]).status
    if status.code != code_pb2.OK:
        step.error.CopyFrom(status)
    return events_pb2.Event(type=events_pb2.EVENT_TYPE_TASK, actor=actor, agent=row["agent"], task=step)


def _task_row(r: DictRow) -> TaskRow:
    return TaskRow(
        id=r["id"],
        crew=r["crew"],
        agent=r["agent"],
        generation=r["generation"],
        phase=r["phase"],
        input=r["input"],
        result=r["result"],
        actor=r["actor"],
        created_at=r["created_at"],
        deadline_at=r["deadline_at"],
        ended_at=r["ended_at"],
    )
