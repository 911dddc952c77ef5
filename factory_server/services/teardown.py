"""Take agents away: let them finish, fence them, destroy what is left, and only then say so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from factory_server.core import model
from factory_server.core.errors import FactoryError
from factory_server.core.lifecycle import AgentEvent, AgentState
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.sessions import Sessions

log = logging.getLogger("factory.teardown")

DYING_MAX = 1000


async def destroy_instance(parts: Parts, instance: str) -> None:
    """Destroy a sandbox and forget its row. Raises Unavailable where it may still exist."""
    await parts.driver.destroy(instance)
    await parts.store.forget_instance(instance)


async def take_away(
    parts: Parts, sessions: Sessions, agents: Sequence[model.AgentRow]
) -> list[model.AgentRow]:
    """Drain, fence and destroy; those of which nothing is left. The others are tried again next pass."""
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(_part_with(parts, sessions, agent), name=f"part with {agent.id}")
    await parts.store.release_instances([a.instance.id for a in agents if a.instance is not None])
    mine = {agent.id for agent in agents}
    doomed = [row for row in await parts.store.dying_instances(DYING_MAX) if row.agent in mine]
    kept: set[str] = set()
    async with asyncio.TaskGroup() as group:
        for row in doomed:
            group.create_task(_destroy(parts, row, kept), name=f"destroy {row.id}")
    await parts.store.forget_instances([row.id for row in doomed if row.agent not in kept])
    return [agent for agent in agents if agent.id not in kept]


async def _part_with(parts: Parts, sessions: Sessions, agent: model.AgentRow) -> None:
    await _let_finish(parts, sessions, agent)
    await _fence_if_possible(parts, sessions, agent)


async def _destroy(parts: Parts, row: model.InstanceRow, kept: set[str]) -> None:
    try:
        await parts.driver.destroy(row.id)
    except FactoryError as error:
        parts.measures.trouble.labels("teardown").inc()
        log.warning("cannot take away yet", extra={"agent": row.agent, "error": str(error)})
        kept.add(row.agent)


async def _let_finish(parts: Parts, sessions: Sessions, agent: model.AgentRow) -> None:
    session = sessions.get(agent.id)
    if session is None or agent.drain_until is None:
        return
    grace_s = (agent.drain_until - parts.now()).total_seconds()
    if grace_s <= 0:
        return
    try:
        await session.line.drain(grace_s=grace_s)
    except FactoryError as error:
        log.info("does not drain", extra={"agent": agent.id, "error": str(error)})


async def _fence_if_possible(parts: Parts, sessions: Sessions, agent: model.AgentRow) -> None:
    """A bus that is away keeps nobody here: the sweeper revokes what is left once it answers."""
    try:
        await fence(parts, sessions, agent.crew, agent.id, agent.generation)
    except FactoryError as error:
        parts.measures.trouble.labels("teardown").inc()
        log.warning("cannot fence on the bus", extra={"agent": agent.id, "error": str(error)})


async def leave_bus(parts: Parts, crew: str) -> None:
    """Delete everything of a crew from the bus, now or, where the bus is away, by a later sweep."""
    try:
        await parts.bus.drop_crew(crew)
    except FactoryError as error:
        parts.measures.trouble.labels("teardown").inc()
        log.warning("cannot drop a crew from the bus", extra={"crew": crew, "error": str(error)})


async def fence(parts: Parts, sessions: Sessions, crew: str, agent: str, generation: int) -> None:
    """Lock a generation out: its session ends and its bus user is gone. Its sockets go with the wiring."""
    sessions.detach(agent, generation)
    await parts.bus.revoke(crew, agent, generation)


def drained(agent: model.AgentRow) -> model.Step:
    """The step that says that nothing of it exists any more."""
    return model.Step(
        agent.id,
        agent.generation,
        (AgentState.DRAINING,),
        AgentEvent.DRAINED,
        ACTOR,
        reason="Drained",
    )
