"""Assemble a crew: check, plan, record the wish in one transaction, and wait until every member is READY."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from factory_server.core import manifest as manifests
from factory_server.core import model, secrets
from factory_server.core.errors import FieldViolation, Invalid, Refused, Unavailable
from factory_server.core.lifecycle import CrewState
from factory_server.services import networks, skills
from factory_server.services.parts import Parts
from factory_server.services.pool import PLAIN
from factory_server.services.reconciler import LEASE_S, Reconciler
from factory_server.services.requests import key_of
from hyperfactory.v1 import crew_service_pb2

log = logging.getLogger("factory.assemble")

LOOK_AGAIN_S = 0.5
"""The net under the doorbell while a caller waits."""


@dataclass(slots=True)
class Assembly:
    """A crew as assembled, and where the time went."""

    crew: model.CrewRow | None
    phases: list[tuple[str, float]] = field(default_factory=list)
    members: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    milliseconds: float = 0.0


async def assemble(
    parts: Parts, reconciler: Reconciler, request: crew_service_pb2.AssembleCrewRequest, actor: str
) -> Assembly:
    """The crew, READY unless the request waits for less. Invalid, Refused (ASSEMBLY_FAILED)."""
    started = time.monotonic()
    plan = await networks.admit(
        parts, await plan_of(parts, request.manifest), only_check=request.validate_only
    )
    assembly = Assembly(None, [("plan", _ms(started))])
    if request.validate_only:
        return assembly
    key = key_of(actor, "AssembleCrew", request.request_id, request)
    recorded = await parts.store.assemble(plan, key, actor, parts.owner, lease_s=LEASE_S)
    assembly.phases.append(("commit", _ms(started)))
    count_claims(parts, recorded.crew.agents)
    if not recorded.replayed:
        reconciler.adopt(recorded.crew)
    assembly.crew = recorded.crew
    if request.wait != crew_service_pb2.WAIT_FOR_ACCEPTED:
        assembly.crew = await wait_assembled(parts, reconciler, recorded.crew.id)
        keeper = reconciler.keeper(recorded.crew.id)
        if keeper is not None:
            assembly.members = {agent: list(p.spent) for agent, p in keeper.phases.items()}
        if not recorded.replayed:
            parts.measures.assemble_s.observe(time.monotonic() - started)
    assembly.milliseconds = _ms(started)
    assembly.phases.append(("ready", assembly.milliseconds))
    return assembly


async def plan_of(parts: Parts, manifest: crew_service_pb2.CrewManifest) -> model.CrewPlan:
    """What a manifest wishes. Invalid, Refused (SECRET_MISSING)."""
    manifests.check_size(manifest)
    profiles = await parts.store.get_profiles(sorted({m.profile for m in manifest.members}))
    await skills.check_manifest(parts, manifest, profiles)
    plan = manifests.plan_crew(manifest, profiles, parts.new_id)
    await _check_bases(parts, manifest, profiles)
    wanted = {name for agent in plan.agents for name in secrets.named_in(agent.spec)}
    await secrets.required(parts.secrets, wanted, f"assemble crew '{manifest.name}'")
    return plan


async def _check_bases(
    parts: Parts, manifest: crew_service_pb2.CrewManifest, profiles: Mapping[str, model.ProfileRow]
) -> None:
    """The members' bases are there: to wait for one would end in a timeout that does not name it. Invalid."""
    gone = set()
    for base in sorted({row.spec.base for row in profiles.values()} - {"", PLAIN}):
        with suppress(Unavailable):  # who makes the instances waits for the driver
            if not await parts.images.has_base(base):
                gone.add(base)
    violations = [
        FieldViolation(
            f"manifest.members[{place}].profile",
            f"the base '{profiles[member.profile].spec.base}' of profile '{member.profile}' is not there",
            "UNKNOWN_BASE",
        )
        for place, member in enumerate(manifest.members)
        if profiles[member.profile].spec.base in gone
    ]
    if violations:
        text = f"cannot assemble crew '{manifest.name}': {violations[0].description}"
        raise Invalid(text, violations=violations)


async def wait_assembled(parts: Parts, reconciler: Reconciler, crew_id: str) -> model.CrewRow:
    """The crew once it is no longer being assembled. Refused (ASSEMBLY_FAILED) when it was taken back."""
    with parts.hub.subscribe(crew_id) as rings:
        while True:
            crew = None
            while reconciler.assembling(crew_id):
                if not await rings.wait(LOOK_AGAIN_S):
                    break
                crew = reconciler.assembled(crew_id)
            crew = crew or await parts.store.get_crew(crew_id)
            match crew.state:
                case CrewState.FAILED:
                    member, _, cause = crew.message.partition(": ")
                    raise Refused(
                        f"cannot assemble crew '{crew.name}': {crew.message}; everything made for it is gone",
                        reason="ASSEMBLY_FAILED",
                        metadata={"member": member, "cause": cause, "crew": crew.id},
                    )
                case CrewState.DISBANDED:
                    raise Refused(
                        f"crew '{crew.name}' was disbanded while it was assembled",
                        reason="WRONG_STATE",
                        metadata={"state": crew.state},
                    )
                case CrewState.DRAINING if crew.ready_at is not None:
                    return crew
                case CrewState.READY | CrewState.DEGRADED:
                    return crew
                case CrewState.ASSEMBLING | CrewState.DRAINING:
                    await rings.wait(LOOK_AGAIN_S)


def count_claims(parts: Parts, agents: Iterable[model.AgentRow]) -> None:
    """Note how these agents got their instances."""
    for agent in agents:
        parts.measures.claims.labels("warm" if agent.warm else "cold").inc()


def _ms(since: float) -> float:
    return (time.monotonic() - since) * 1000
