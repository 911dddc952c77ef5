"""Move agents: steps of the reconciler, ends that are wished, retries."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from factory_server.core.errors import Refused
from factory_server.core.lifecycle import LIVE, AgentEvent, AgentState
from factory_server.core.model import AgentRow, CrewRow, RequestKey, Step, Stepped, StepResult
from factory_server.store.crews import read_crew
from factory_server.store.locked import LockedCrew, lock_agent, lock_crew
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request

STOPPABLE = (*LIVE, AgentState.FAILED)


class Steps(Part):
    """Moves along the transition table."""

    async def step(self, crew: str, steps: Sequence[Step]) -> Stepped:
        """Carry out steps in order, each by compare-and-swap; those that lost have `agent=None`."""

        async def body(transaction: Transaction) -> Stepped:
            locked = await lock_crew(transaction, crew, list({step.agent for step in steps}))
            rows = await locked.take(steps)
            await locked.finish()
            results = [StepResult(step, row) for step, row in zip(steps, rows, strict=True)]
            return Stepped(results, locked.state, locked.last_sequence, locked.head())

        return await self._db.run(body)

    async def disband(
        self,
        crew: str,
        request: RequestKey | None,
        actor: str,
        *,
        failed: bool,
        reason: str,
        message: str,
        drain_s: float,
    ) -> CrewRow:
        """Wish the crew gone and shut its agents down."""

        async def body(transaction: Transaction) -> CrewRow:
            locked = await lock_crew(transaction, crew, None)
            if await claim_request(transaction, request, crew) is None:
                await _disband(locked, actor, failed=failed, reason=reason, message=message, drain_s=drain_s)
            return await read_crew(transaction, crew)

        return await self._db.run(body)

    async def stop_agent(
        self, agent: str, request: RequestKey | None, actor: str, *, drain_s: float
    ) -> AgentRow:
        """Shut an agent down from whatever state; a solo crew is wished gone with it."""

        async def body(transaction: Transaction) -> AgentRow:
            locked, row = await lock_agent(transaction, agent)
            if await claim_request(transaction, request, agent) is not None:
                return row
            reason = "Stopped"
            if locked.solo:
                await _disband(locked, actor, failed=False, reason=reason, message="", drain_s=drain_s)
            elif row.state in STOPPABLE:
                await locked.take([shutdown(row, actor, reason, "", drain_s)])
                await locked.finish()
            return locked.agents[agent]

        return await self._db.run(body)

    async def retry_agent(self, agent: str, request: RequestKey | None, actor: str) -> AgentRow:
        """Begin again with a FAILED agent, its budget cleared."""

        async def body(transaction: Transaction) -> AgentRow:
            locked, row = await lock_agent(transaction, agent)
            if await claim_request(transaction, request, agent) is not None:
                return row
            if row.state is not AgentState.FAILED:
                raise Refused(
                    f"cannot retry agent '{agent}': it is {row.state}", metadata={"state": row.state}
                )
            retry = Step(agent, row.generation, (row.state,), AgentEvent.RETRY, actor, reason="Retried")
            await locked.take([retry])
            await locked.finish()
            return locked.agents[agent]

        return await self._db.run(body)


async def _disband(
    crew: LockedCrew, actor: str, *, failed: bool, reason: str, message: str, drain_s: float
) -> None:
    until = crew.now + timedelta(seconds=drain_s)
    crew.wish_end(failed=failed, reason=reason, message=message, actor=actor, until=until)
    agents = sorted(crew.agents.values(), key=lambda agent: agent.id)
    stoppable = [agent for agent in agents if agent.state in STOPPABLE]
    await crew.take([shutdown(agent, actor, reason, message, drain_s) for agent in stoppable])
    await crew.finish()


def shutdown(agent: AgentRow, actor: str, reason: str, message: str, drain_s: float) -> Step:
    """The step that sends an agent on its way out."""
    return Step(
        agent=agent.id,
        generation=agent.generation,
        sources=(agent.state,),
        event=AgentEvent.SHUTDOWN,
        actor=actor,
        reason=reason,
        message=message,
        drain_s=drain_s,
    )
