"""Reach the instance that serves an agent now: wake one that hibernates, wait for one that is on its way."""

from __future__ import annotations

import asyncio

from factory_server.core import model
from factory_server.core.errors import NotFound, Refused, Unavailable
from factory_server.core.lifecycle import SERVING, AgentState
from factory_server.services.assemble import LOOK_AGAIN_S
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.registry import RegistryFeed
from factory_server.services.wake import COMING


class Reach:
    """Agents as they can be called."""

    def __init__(self, parts: Parts, agents: RegistryFeed) -> None:
        self._parts = parts
        self._agents = agents

    async def serving(self, agent: str, *, within_s: float) -> model.AgentRow:
        """The agent with the instance that serves it. NotFound, Refused where it takes no call any more,
        Unavailable where it does not serve in time."""
        seen = self._agents.find(agent)
        if seen is not None and seen.state in SERVING and seen.instance is not None:
            return seen
        try:
            async with asyncio.timeout(within_s):
                return await self._come(agent)
        except TimeoutError:
            raise Unavailable(f"agent '{agent}' does not serve within {within_s:g} s") from None

    async def again(self, agent: model.AgentRow, *, within_s: float) -> model.AgentRow:
        """The same for an agent whose instance did not take a call: as the store has it, not as it was seen."""
        try:
            async with asyncio.timeout(within_s):
                return await self._come(agent.id, but_not=agent)
        except TimeoutError:
            raise Unavailable(f"agent '{agent.name}' does not serve within {within_s:g} s") from None

    async def _come(self, ident: str, but_not: model.AgentRow | None = None) -> model.AgentRow:
        agent = await self._parts.store.get_agent(ident)
        with self._parts.hub.subscribe(agent.crew) as rings:
            while True:
                agent = await self._parts.store.get_agent(ident)
                if agent.state is AgentState.HIBERNATING:
                    agent = await self._parts.store.wake_agent(ident, None, ACTOR)
                if agent.state in SERVING and agent.instance is not None:
                    if but_not is None or agent.generation != but_not.generation:
                        return agent
                elif agent.state is AgentState.STOPPED:
                    raise NotFound(f"agent '{ident}' is gone", resource_type="agent", resource_name=ident)
                elif agent.state not in COMING:
                    raise Refused(
                        f"agent '{agent.name}' is {agent.state} and takes no call: {agent.message}",
                        metadata={"state": agent.state},
                    )
                await rings.wait(LOOK_AGAIN_S)
