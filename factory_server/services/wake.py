"""Wake agents that hibernate or are frozen: because somebody asks, calls, signals or has work for them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from factory_server.core import model
from factory_server.core.errors import Refused
from factory_server.core.lifecycle import SERVING, AgentEvent, AgentState
from factory_server.services.assemble import LOOK_AGAIN_S
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.reconciler import Reconciler
from factory_server.services.requests import key_of
from factory_server.services.steps import narrate
from hyperfactory.v1 import factory_service_pb2

COMING = (AgentState.PROVISIONING, AgentState.WARMING, AgentState.UNHEALTHY)
"""On its way to READY, as far as anybody knows."""


async def wake(
    parts: Parts, reconciler: Reconciler, request: factory_service_pb2.WakeAgentRequest, actor: str
) -> model.AgentRow:
    """The agent, READY. NotFound, Refused (WRONG_STATE)."""
    began = time.monotonic()
    key = key_of(actor, "WakeAgent", request.request_id, request)
    agent = await parts.store.wake_agent(request.agent, key, actor)
    reconciler.kick(agent.crew)
    row = await _until_awake(parts, agent)
    parts.measures.wake_s.observe(time.monotonic() - began)
    return row


async def _until_awake(parts: Parts, agent: model.AgentRow) -> model.AgentRow:
    with parts.hub.subscribe(agent.crew) as rings:
        while not agent.serves:
            if agent.state not in (*COMING, *SERVING):
                raise Refused(
                    f"cannot wake agent '{agent.name}': it is {agent.state}: {agent.message}",
                    metadata={"state": agent.state},
                )
            await rings.wait(LOOK_AGAIN_S)
            agent = await parts.store.get_agent(agent.id)
            if agent.frozen_at is not None:
                await parts.store.wake_agent(agent.id, None, ACTOR)
    return agent


async def awaken(parts: Parts, agent_id: str, reason: str) -> model.AgentRow:
    """The agent, serving, woken where it hibernates. NotFound, Refused (WRONG_STATE)."""
    agent = await parts.store.get_agent(agent_id)
    await wake_members(parts, agent.crew, [agent], reason)
    return await _until_awake(parts, await parts.store.get_agent(agent_id))


async def wake_members(parts: Parts, crew: str, agents: Sequence[model.AgentRow], reason: str) -> None:
    """Wake those of a crew's members that sleep; it goes on by itself, and does no harm twice."""
    steps = [
        model.Step(a.id, a.generation, (a.state,), AgentEvent.WAKE, "factory", reason=reason)
        for a in agents
        if a.state is AgentState.HIBERNATING
    ]
    for frozen in [a for a in agents if a.frozen_at is not None]:
        await parts.store.wake_agent(frozen.id, None, "factory")
    if steps:
        narrate(parts, await parts.store.step(crew, steps))
