"""Update a crew: who joins and who leaves by a new manifest, and wait until those that joined serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factory_server.core import model, scaling
from factory_server.core.lifecycle import AgentState
from factory_server.services import networks
from factory_server.services.agents import wait_serving
from factory_server.services.assemble import count_claims, plan_of
from factory_server.services.durations import seconds
from factory_server.services.parts import Parts
from factory_server.services.reconciler import LEASE_S, Reconciler
from factory_server.services.requests import key_of
from hyperfactory.v1 import crew_service_pb2


@dataclass(frozen=True, slots=True)
class Update:
    """A crew as updated (None where it was only checked), and the names of those that came and went."""

    crew: model.CrewRow | None
    added: Sequence[str]
    removed: Sequence[str]


async def update(
    parts: Parts, reconciler: Reconciler, request: crew_service_pb2.UpdateCrewRequest, actor: str
) -> Update:
    """The crew with its new members serving. Invalid, NotFound, Refused, Exhausted. Where the caller goes first,
    the work goes on."""
    plan = await plan_of(parts, request.manifest)
    key = key_of(actor, "UpdateCrew", request.request_id, request)
    if request.validate_only or await parts.store.find_request(key) is None:
        wished = scaling.change(await parts.store.get_crew(request.crew), plan, parts.now())
        await networks.admit_members(parts, request.crew, wished.added, key)
        if request.validate_only:
            return Update(None, [a.name for a in wished.added], [a.name for a in wished.removed])
    done = await parts.store.update_crew(
        request.crew, plan, key, actor, parts.owner, drain_s=seconds(request.grace), lease_s=LEASE_S
    )
    reconciler.kick(request.crew)
    joined = [a for a in done.crew.agents if a.name in done.added and a.state is not AgentState.STOPPED]
    if not done.replayed:
        count_claims(parts, joined)
    for agent in joined:
        await wait_serving(parts, agent.id)
    return Update(await parts.store.get_crew(request.crew), done.added, done.removed)
