"""Keep the states of agents that hibernate, and move agents into hibernation and out of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from factory_server.core.errors import Refused, Unavailable
from factory_server.core.lifecycle import TERMINAL, AgentEvent, AgentState
from factory_server.core.model import AgentRow, RequestKey, StateRow, Step, Stepped, StepResult
from factory_server.store import encode
from factory_server.store.locked import LockedCrew, lock_agent, lock_crew
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request

ENDING = (AgentState.DRAINING, *TERMINAL)


class Hibernation(Part):
    """States, one a generation, each from hibernation until its agent is READY again."""

    async def hibernate(
        self, crew: str, step: Step, moved_at: datetime, state: StateRow, request: RequestKey | None
    ) -> Stepped:
        """Carry out a `ttl_expired` step and keep the agent's state with it, or neither."""

        async def body(transaction: Transaction) -> Stepped:
            locked = await lock_crew(transaction, crew, [step.agent])
            row = await _fall_asleep(locked, step, moved_at)
            if row is None or await claim_request(transaction, request, step.agent) is not None:
                return Stepped([StepResult(step, None)], locked.state, locked.last_sequence)
            await _keep(locked, step.agent, state)
            await locked.finish()
            return Stepped([StepResult(step, row)], locked.state, locked.last_sequence)

        return await self._db.run(body)

    async def wake_agent(self, agent: str, request: RequestKey | None, actor: str) -> AgentRow:
        """Wake an agent that hibernates or is frozen; one that lives is returned as it is."""

        async def body(transaction: Transaction) -> AgentRow:
            locked, row = await lock_agent(transaction, agent)
            if await claim_request(transaction, request, agent) is not None:
                return row
            if row.state in ENDING:
                raise Refused(
                    f"cannot wake agent '{row.name}': it is {row.state}", metadata={"state": row.state}
                )
            if row.frozen_at is not None:
                return await _want_thaw(locked, row)
            if row.state is AgentState.HIBERNATING:
                wake = Step(agent, row.generation, (row.state,), AgentEvent.WAKE, actor, reason="Woken")
                await locked.take([wake])
                await locked.finish()
            return locked.agents[agent]

        return await self._db.run(body)

    async def freeze_agent(
        self, agent: AgentRow, actor: str, reason: str, message: str, request: RequestKey | None
    ) -> AgentRow | None:
        """Note down that an agent is frozen, unless something came in between."""

        async def body(transaction: Transaction) -> AgentRow | None:
            locked, row = await lock_agent(transaction, agent.id)
            if await _has_moved(locked, row, agent.updated_at) or row.frozen_at is not None:
                return None
            if await claim_request(transaction, request, agent.id) is not None:
                return None
            if await transaction.row(
                "agent_freeze", agent=row.id, generation=agent.generation, now=locked.now
            ):
                return await _frozen(locked, replace(row, frozen_at=locked.now), actor, reason, message)
            return None

        return await self._db.run(body)

    async def thaw_agent(self, agent: str, generation: int, actor: str, reason: str) -> AgentRow | None:
        """Note down that an agent is frozen no more: it is idle from now on."""

        async def body(transaction: Transaction) -> AgentRow | None:
            locked, row = await lock_agent(transaction, agent)
            if await transaction.row("agent_thaw", agent=agent, generation=generation, now=locked.now):
                awake = replace(row, frozen_at=None, thaw_wanted=False, updated_at=locked.now)
                return await _frozen(locked, awake, actor, reason, "")
            return None

        return await self._db.run(body)

    async def saved_state(self, agent: str) -> StateRow | None:
        """Return the newest state of an agent."""

        async def body(transaction: Transaction) -> StateRow | None:
            row = await transaction.row("state_get", agent=agent)
            return None if row is None else StateRow(row["generation"], bytes(row["data"]), row["sha256"])

        return await self._db.read(body)


async def _fall_asleep(crew: LockedCrew, step: Step, moved_at: datetime) -> AgentRow | None:
    """Take the step, unless something came in between: the state would be older than the agent's last work."""
    agent = crew.agents.get(step.agent)
    if agent is None or await _has_moved(crew, agent, moved_at):
        return None
    return (await crew.take([step]))[0]


async def _has_moved(crew: LockedCrew, agent: AgentRow, moved_at: datetime) -> bool:
    """Whether the agent worked since then, or has a signal to see to."""
    if agent.updated_at != moved_at:
        return True
    return bool((await crew.transaction.one("signals_waiting", agent=agent.id))["waiting"])


async def _want_thaw(crew: LockedCrew, agent: AgentRow) -> AgentRow:
    """Ask whoever keeps the crew to thaw the agent; once is enough."""
    if not agent.thaw_wanted and agent.state is AgentState.READY:
        await crew.transaction.rows("agent_want_thaw", agent=agent.id)
        crew.transaction.agents = True
        crew.transaction.crews[crew.id] = crew.last_sequence
    return replace(agent, thaw_wanted=True)


async def _frozen(crew: LockedCrew, agent: AgentRow, actor: str, reason: str, message: str) -> AgentRow:
    """Tell that an agent is frozen, or is no more."""
    crew.transaction.agents = True
    crew.agents[agent.id] = agent
    frozen = agent.frozen_at is not None
    crew.events.append(encode.agent_frozen(agent.id, actor, crew.now, reason, message, frozen=frozen))
    await crew.finish()
    return agent


async def _keep(crew: LockedCrew, agent: str, state: StateRow) -> None:
    """Store a state, and see that what is stored is what was given: the instance is about to go."""
    place = {"agent": agent, "generation": state.generation}
    await crew.transaction.send("state_insert", **place, data=state.data, sha256=state.sha256, now=crew.now)
    stored = (await crew.transaction.one("state_checksum", **place))["sha256"]
    if stored != state.sha256.lower():
        raise Unavailable(f"cannot keep the state of agent '{agent}': it does not read back as it was given")
