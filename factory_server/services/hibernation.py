"""Send agents to sleep: take the state, store it with the step, and only then let the instance go.

Between Suspend and the step the instance takes no work and holds its signals, so that the state is the last
word. Where the step loses (a task, a stop, a verdict, a signal came first) the suspension is taken back and
nothing has changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from factory_server.core import model
from factory_server.core.errors import FactoryError, Refused
from factory_server.core.lifecycle import SERVING, AgentEvent, AgentState
from factory_server.core.line import Line
from factory_server.core.reconcile import Decision
from factory_server.services.durations import seconds
from factory_server.services.hub import REAPER
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.resting import Resting
from factory_server.services.sessions import Sessions
from factory_server.services.steps import narrate
from hyperfactory.v1 import agent_service_pb2

log = logging.getLogger("factory.hibernation")

SUSPEND_S = 10.0
TAKE_BACK_S = 5.0
FRESH_MAX_S = 20.0
"""An instance that nobody ended takes work again after 60 s: an older state may not be its last."""


def state_lost(agent: model.AgentRow, message: str) -> Sequence[model.Step]:
    """The agent's memory cannot be taken back: rather no agent than one that silently forgot."""
    moves = ((AgentState.WARMING, AgentEvent.HEALTH_FAILED), (AgentState.UNHEALTHY, AgentEvent.GAVE_UP))
    return [
        model.Step(
            agent.id, agent.generation, (source,), event, ACTOR, reason="StateCorrupt", message=message
        )
        for source, event in moves
    ]


class Hibernation:
    """How a keeper sends its agents to sleep, and others with its help; each agent by one at a time."""

    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        self._parts = parts
        self._sessions = sessions
        self.resting = Resting(parts)

    # For the keeper

    def left_behind(self, agents: Iterable[model.AgentRow]) -> list[model.AgentRow]:
        """Those that sleep, sent there by whomever, while the session with their instance is still held."""
        sleepers = [a for a in agents if a.state is AgentState.HIBERNATING]
        return [a for a in sleepers if self._sessions.get(a.id) is not None]

    async def rest(self, agent: model.AgentRow, decision: Decision) -> bool:
        """Hibernate an agent whose ttl is over, if its instance, too, was idle for so long; else put it off. True:
        look again, for the next job or for when it is due."""
        ttl = agent.spec.idle_ttl
        sleeping = self.sleep(agent, ACTOR, decision.reason, decision.message, idle_for_s=seconds(ttl))
        await self.resting.lay(agent, ttl, sleeping)
        return True

    # For everybody

    async def sleep(
        self,
        agent: model.AgentRow,
        actor: str,
        reason: str,
        message: str,
        *,
        idle_for_s: float = 0.0,
        request: model.RequestKey | None = None,
    ) -> model.AgentRow | None:
        """The agent, HIBERNATING; None where something came first. Raises what the instance or the store says."""
        if agent.instance is None:
            raise Refused(f"cannot hibernate agent '{agent.name}': it has no instance")
        step = model.Step(
            agent.id,
            agent.generation,
            (AgentState.READY,),
            AgentEvent.TTL_EXPIRED,
            actor,
            reason=reason,
            message=message,
        )
        async with (
            self._sessions.suspending(agent.id),
            self._running(agent),
            self._sessions.lend(agent) as line,
        ):
            began = time.monotonic()
            state = await line.suspend(idle_for_s=idle_for_s, deadline_s=SUSPEND_S)
            row: model.AgentRow | None = None
            try:
                if time.monotonic() - began < FRESH_MAX_S:
                    row = await self._store(agent, step, state, request)
            finally:
                if row is None:
                    await self.take_back(agent, line)
        self._parts.measures.hibernate_s.observe(time.monotonic() - began)
        self._parts.hub.ring(REAPER)
        return row

    async def _store(
        self,
        agent: model.AgentRow,
        step: model.Step,
        state: agent_service_pb2.StateBlob,
        request: model.RequestKey | None,
    ) -> model.AgentRow | None:
        kept = model.StateRow(agent.generation, state.data, state.sha256)
        stepped = await self._parts.store.hibernate(agent.crew, step, agent.updated_at, kept, request)
        narrate(self._parts, stepped)
        return stepped.results[0].agent

    async def take_back(self, agent: model.AgentRow, line: Line) -> None:
        """The instance works on, if it still carries the agent; where nobody knows, it does so by itself."""
        try:
            now = await self._parts.store.get_agent(agent.id)
            if now.generation == agent.generation and now.state in SERVING:
                await line.take_back(deadline_s=TAKE_BACK_S)
        except FactoryError as error:
            self._parts.measures.trouble.labels("hibernation").inc()
            log.warning("cannot take a suspension back", extra={"agent": agent.id, "error": str(error)})

    @asynccontextmanager
    async def _running(self, agent: model.AgentRow) -> AsyncIterator[None]:
        """One that is frozen runs meanwhile; if it is still there afterwards, its row must come to say so."""
        if agent.frozen_at is None or agent.instance is None:
            yield
            return
        await self._parts.driver.thaw(agent.instance.id)
        try:
            yield
        finally:
            now = await self._parts.store.get_agent(agent.id)
            if now.frozen_at is not None:
                await self._parts.store.wake_agent(agent.id, None, ACTOR)
