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

    async def serving(self, agent: str, *, within_s: float, anew: bool = False) -> model.AgentRow:
        """The agent with the instance that serves it, as last seen or, `anew`, as the store has it. NotFound,
        Refused where it takes no call any more, Unavailable where it does not serve in time."""
        seen = None if anew else self._agents.find(agent)
        if seen is not None and seen.serves and seen.instance is not None:
            return seen
        try:
            async with asyncio.timeout(within_s):
                return await self._come(agent)
        except TimeoutError:
            raise Unavailable(f"agent '{agent}' does not serve within {within_s:g} s") from None

    async def slept(self, agent: model.AgentRow) -> bool:
        """Whether an instance that gave no answer was asleep by then, and nothing else: it was suspended, with
        nothing at work, so that the call never began and may be made again."""
        now = await self._parts.store.get_agent(agent.id)
        if (now.replacements, now.replaced_since) != (agent.replacements, agent.replaced_since):
            return False
        if now.generation == agent.generation:
            return now.sleeps
        return now.state in (AgentState.HIBERNATING, AgentState.WARMING, *SERVING)

    async def _come(self, ident: str) -> model.AgentRow:
        agent = await self._parts.store.get_agent(ident)
        with self._parts.hub.subscribe(agent.crew) as rings:
            while True:
                agent = await self._parts.store.get_agent(ident)
                if agent.sleeps:
                    agent = await self._parts.store.wake_agent(ident, None, ACTOR)
                if agent.serves and agent.instance is not None:
                    return agent
                if agent.state is AgentState.STOPPED:
                    raise NotFound(f"agent '{ident}' is gone", resource_type="agent", resource_name=ident)
                if agent.state not in (*COMING, *SERVING):
                    raise Refused(
                        f"agent '{agent.name}' is {agent.state} and takes no call: {agent.message}",
                        metadata={"state": agent.state},
                    )
                await rings.wait(LOOK_AGAIN_S)
