"""Disband a crew: record the wish, and wait until nothing of it is left."""

from __future__ import annotations

from factory_server.core import model
from factory_server.core.lifecycle import CREW_ENDED
from factory_server.services.durations import seconds
from factory_server.services.parts import Parts
from factory_server.services.reconciler import Reconciler
from factory_server.services.requests import key_of
from hyperfactory.v1 import crew_service_pb2

LOOK_AGAIN_S = 0.5


async def disband(
    parts: Parts, reconciler: Reconciler, request: crew_service_pb2.DisbandCrewRequest, actor: str
) -> model.CrewRow:
    """The crew, gone. Where the caller goes first, the work goes on. NotFound."""
    key = key_of(actor, "DisbandCrew", request.request_id, request)
    crew = await parts.store.disband(
        request.crew,
        key,
        actor,
        failed=False,
        reason="Disbanded",
        message=f"disbanded by {actor}",
        drain_s=seconds(request.grace),
    )
    reconciler.kick(crew.id)
    return await wait_gone(parts, crew.id)


async def wait_gone(parts: Parts, crew_id: str) -> model.CrewRow:
    """The crew once it is terminal."""
    with parts.hub.subscribe(crew_id) as rings:
        while True:
            crew = await parts.store.get_crew(crew_id)
            if crew.state in CREW_ENDED:
                return crew
            await rings.wait(LOOK_AGAIN_S)
