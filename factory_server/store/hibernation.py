"""Keep the states of agents that hibernate, and move agents into hibernation and out of it."""

from __future__ import annotations

from datetime import datetime

from factory_server.core.errors import Refused, Unavailable
from factory_server.core.lifecycle import TERMINAL, AgentEvent, AgentState
from factory_server.core.model import AgentRow, RequestKey, StateRow, Step, Stepped, StepResult
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
        """Wake an agent that hibernates; one that lives is returned as it is."""

        async def body(transaction: Transaction) -> AgentRow:
            locked, row = await lock_agent(transaction, agent)
            if await claim_request(transaction, request, agent) is not None:
                return row
            if row.state in ENDING:
                raise Refused(
                    f"cannot wake agent '{row.name}': it is {row.state}", metadata={"state": row.state}
                )
            if row.state is AgentState.HIBERNATING:
                wake = Step(agent, row.generation, (row.state,), AgentEvent.WAKE, actor, reason="Woken")
                await locked.take([wake])
                await locked.finish()
            return locked.agents[agent]

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
    if agent is None or agent.updated_at != moved_at:
        return None
    if (await crew.transaction.one("signals_waiting", agent=agent.id))["waiting"]:
        return None
    return (await crew.take([step]))[0]


async def _keep(crew: LockedCrew, agent: str, state: StateRow) -> None:
    """Store a state, and see that what is stored is what was given: the instance is about to go."""
    place = {"agent": agent, "generation": state.generation}
    await crew.transaction.send("state_insert", **place, data=state.data, sha256=state.sha256, now=crew.now)
    stored = (await crew.transaction.one("state_checksum", **place))["sha256"]
    if stored != state.sha256.lower():
        raise Unavailable(f"cannot keep the state of agent '{agent}': it does not read back as it was given")
