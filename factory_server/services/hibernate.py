"""Hibernate one agent, or freeze it in place, because somebody asked for it."""

from __future__ import annotations

from factory_server.core import model
from factory_server.core.errors import Refused, Stale, Unavailable
from factory_server.core.lifecycle import AgentState
from factory_server.services.parts import Parts
from factory_server.services.reconciler import Reconciler
from factory_server.services.requests import key_of
from hyperfactory.v1 import factory_service_pb2


async def hibernate(
    parts: Parts, reconciler: Reconciler, request: factory_service_pb2.HibernateAgentRequest, actor: str
) -> model.AgentRow:
    """The agent, HIBERNATING. NotFound, Refused (WRONG_STATE), Stale (something came first)."""
    key = key_of(actor, "HibernateAgent", request.request_id, request)
    before = await parts.store.find_request(key)
    agent = await parts.store.get_agent(request.agent)
    if request.light:
        return agent if before is not None else await _freeze(parts, reconciler, agent, key, actor)
    if before is not None or agent.state is AgentState.HIBERNATING:
        return agent
    if agent.state is not AgentState.READY:
        raise Refused(
            f"cannot hibernate agent '{agent.name}': it is {agent.state}", metadata={"state": agent.state}
        )
    try:
        row = await reconciler.hibernation.sleep(agent, actor, "Hibernated", f"by {actor}", request=key)
    except Unavailable:
        # Perhaps somebody else has sent it to sleep, and its instance went while it was asked.
        now = await parts.store.get_agent(request.agent)
        if now.state is not AgentState.HIBERNATING and now.generation == agent.generation:
            raise
        row = None
    if row is not None:
        reconciler.kick(agent.crew)
        return row
    agent = await parts.store.get_agent(request.agent)
    if agent.state is not AgentState.HIBERNATING:
        raise Stale(f"cannot hibernate agent '{agent.name}': something else came first, it is {agent.state}")
    return agent


async def _freeze(
    parts: Parts, reconciler: Reconciler, agent: model.AgentRow, key: model.RequestKey, actor: str
) -> model.AgentRow:
    """The agent, frozen in place. Refused, Stale as above."""
    if agent.frozen_at is not None:
        return agent
    if agent.state is not AgentState.READY:
        raise Refused(
            f"cannot freeze agent '{agent.name}': it is {agent.state}", metadata={"state": agent.state}
        )
    row = await reconciler.freezing.freeze(agent, actor, "Hibernated", f"by {actor}", request=key)
    if row is None:
        row = await parts.store.get_agent(agent.id)
        if row.frozen_at is None:
            raise Stale(f"cannot freeze agent '{agent.name}': something else came first, it is {row.state}")
    reconciler.kick(agent.crew)
    return row
