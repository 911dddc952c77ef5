"""Freeze idle agents in place and thaw them when they are wanted: hibernation that keeps instance and memory.

`frozen_at` in the agent's row is the word, and comes first: from then on nobody is led to the agent, mates find
the doorstep in its place and drop the channels they hold. Only `HEARD_S` later, when everybody has heard it, the
keeper stops its processes, so that no call hangs in them unseen; until then the suspended instance refuses what
still comes. Thawing goes the other way round: the processes run and take work before the row says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from factory_server.core import model
from factory_server.core.errors import NotFound, Refused
from factory_server.core.lifecycle import AgentState
from factory_server.core.reconcile import Decision, Job
from factory_server.services.durations import seconds
from factory_server.services.hibernation import SUSPEND_S, TAKE_BACK_S, Hibernation
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.resting import Resting
from factory_server.services.sessions import Sessions
from hyperfactory.v1 import agent_service_pb2

log = logging.getLogger("factory.freezing")

SESSION_S = 5.0
LOOK_AGAIN_S = 0.5

Attend = Callable[[model.AgentRow], Awaitable[object]]


class Freezing:
    """How a keeper freezes and thaws its agents, and others have them frozen; each agent by one at a time."""

    def __init__(self, parts: Parts, sessions: Sessions, hibernation: Hibernation) -> None:
        self._parts = parts
        self._sessions = sessions
        self._hibernation = hibernation
        self._held: dict[str, datetime] = {}
        """Agents whose processes were stopped by this process, and for which freezing."""
        self._resting = Resting(parts)

    # For the keeper

    def settled(self, agent: model.AgentRow, decision: Decision, *, attended: bool) -> Decision:
        """The decision as things stand: nothing is to be done for one that is held, and one whose instance has no
        session or was used is not frozen yet."""
        if decision.job is Job.HOLD and self._held.get(agent.id) == agent.frozen_at:
            return Decision(Job.NONE)
        if decision.job is not Job.FREEZE:
            return decision
        return self._resting.unless_used(agent, decision, attended=attended)

    async def rest(self, agent: model.AgentRow, decision: Decision) -> bool:
        """Freeze an agent that was idle for long enough, if its instance, too, says so; else put it off."""
        idle = agent.spec.freeze_after
        freezing = self.freeze(agent, ACTOR, decision.reason, decision.message, idle_for_s=seconds(idle))
        await self._resting.lay(agent, idle, freezing)
        return True

    async def hold(self, agent: model.AgentRow) -> bool:
        """Stop the processes of an agent whose row says that it is frozen."""
        async with self._sessions.suspending(agent.id):
            now = await self._parts.store.get_agent(agent.id)
            if now.frozen_at != agent.frozen_at or now.thaw_wanted or now.frozen_at is None:
                return True
            if now.instance is None or now.state is not AgentState.READY:
                return True
            # Its stream would time out in silence; the next one begins when it is thawed.
            self._sessions.detach(agent.id, agent.generation)
            await self._parts.driver.freeze(now.instance.id)
            self._held[agent.id] = now.frozen_at
        log.info("frozen", extra={"action": "agent_frozen", "agent": agent.id})
        return False

    async def thaw(self, agent: model.AgentRow, attend: Attend) -> bool:
        """Let a frozen agent work on, and say so. One that does not answer is said to serve all the same: then the
        watchdog sees that it is silent, and condemns it."""
        async with self._sessions.suspending(agent.id):
            now = await self._parts.store.get_agent(agent.id)
            if now.frozen_at is None or now.generation != agent.generation or now.instance is None:
                return True
            try:
                await self._parts.driver.thaw(now.instance.id)
                await attend(now)
                await self._take_back(now)
            except (NotFound, TimeoutError) as error:
                log.warning("thawed, and silent", extra={"agent": agent.id, "error": repr(error)})
            await self._parts.store.thaw_agent(agent.id, agent.generation, ACTOR, "Wanted")
            self._held.pop(agent.id, None)
        log.info("thawed", extra={"action": "agent_thawed", "agent": agent.id})
        return True

    async def _take_back(self, agent: model.AgentRow) -> None:
        """What fell due while it was frozen comes first: an identity that holds, and the crew as it is now."""
        async with asyncio.timeout(SESSION_S):
            session = await self._sessions.find(agent.id, agent.generation, within_s=SESSION_S)
            if session is None:
                return
            await session.up.wait()
            identity = self._parts.identities.identify(agent)
            await session.send(agent_service_pb2.DeliverRequest(identity=identity))
            await session.line.take_back(deadline_s=TAKE_BACK_S)

    # For everybody

    async def freeze(
        self,
        agent: model.AgentRow,
        actor: str,
        reason: str,
        message: str,
        *,
        idle_for_s: float = 0.0,
        request: model.RequestKey | None = None,
    ) -> model.AgentRow | None:
        """The agent, frozen; None where something came first. Raises what the instance or the store says, and
        Refused where the driver cannot freeze."""
        if agent.instance is None:
            raise Refused(f"cannot freeze agent '{agent.name}': it has no instance")
        if why := self._parts.driver.cannot_freeze:
            raise Refused(f"cannot freeze agent '{agent.name}': {why}", metadata={"state": agent.state})
        async with self._sessions.suspending(agent.id), self._sessions.lend(agent) as line:
            await line.suspend(idle_for_s=idle_for_s, deadline_s=SUSPEND_S)
            row: model.AgentRow | None = None
            try:
                row = await self._parts.store.freeze_agent(agent, actor, reason, message, request)
            finally:
                if row is None:
                    await self._hibernation.take_back(agent, line)
        return row


async def thawed(parts: Parts, agent: model.AgentRow) -> model.AgentRow:
    """The agent, thawed where it was frozen. Who cannot wait for ever brings a deadline."""
    with parts.hub.subscribe(agent.crew) as rings:
        while agent.frozen_at is not None:
            await parts.store.wake_agent(agent.id, None, ACTOR)
            await rings.wait(LOOK_AGAIN_S)
            agent = await parts.store.get_agent(agent.id)
    return agent
