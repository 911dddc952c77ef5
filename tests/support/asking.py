"""Ask a factory's services for what its API would ask."""

from __future__ import annotations

import itertools
from typing import Any

from google.protobuf.json_format import ParseDict

from factory_server.core import model
from factory_server.services import agents, assemble, disband
from hyperfactory.v1 import crew_service_pb2, factory_service_pb2
from support.site import Plant

_NUMBERS = itertools.count(1)
ACTOR = "operator/alice"
READY_WITHIN_S = 5


def request_id() -> str:
    """A fresh one."""
    return f"00000000-0000-4000-8000-{next(_NUMBERS):012}"


def manifest(name: str = "crew", agents: int = 1, **fields: Any) -> crew_service_pb2.CrewManifest:
    """A crew of generic agents in one group `w`."""
    members = [{"name": "w", "profile": "generic", "replicas": agents}]
    return ParseDict({"name": name, "members": members} | fields, crew_service_pb2.CrewManifest())


async def assembled(plant: Plant, agents: int = 1, **fields: Any) -> model.CrewRow:
    """A READY crew."""
    request = crew_service_pb2.AssembleCrewRequest(
        request_id=request_id(), manifest=manifest(agents=agents, **fields)
    )
    made = await assemble.assemble(plant.parts, plant.reconciler, request, ACTOR)
    assert made.crew is not None
    return made.crew


async def disbanded(plant: Plant, crew: str) -> model.CrewRow:
    """The crew, gone."""
    request = crew_service_pb2.DisbandCrewRequest(request_id=request_id(), crew=crew)
    return await disband.disband(plant.parts, plant.reconciler, request, ACTOR)


async def stopped(plant: Plant, agent: str, grace_s: int = 0) -> model.AgentRow:
    """The agent, on its way out."""
    request = factory_service_pb2.StopAgentRequest(request_id=request_id(), agent=agent)
    request.grace.seconds = grace_s
    return await agents.stop(plant.parts, plant.reconciler, request, ACTOR)


async def broadcast(plant: Plant, crew: str, signal: str = "PING", ttl_s: float = 10) -> model.BroadcastRow:
    """A broadcast that was sent."""
    request = crew_service_pb2.BroadcastRequest(request_id=request_id(), crew=crew, signal=signal)
    request.ttl.FromMilliseconds(int(ttl_s * 1000))
    row, _ = await plant.factory.broadcasts.send(request, ACTOR)
    return row


async def task(plant: Plant, crew: str, timeout_s: int = 10, **fields: Any) -> model.TaskRow:
    """A task that was given to an agent of the crew."""
    request = crew_service_pb2.RunTaskRequest(request_id=request_id(), crew=crew)
    request.timeout.seconds = timeout_s
    request.input.update(fields)
    row, _ = await plant.factory.tasks.start(request, ACTOR)
    return row
