"""Build the factory's gRPC server: servicers, health, reflection and channelz behind one guard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection

from factory_server.api.a2a import policy as a2a_policy
from factory_server.api.a2a.servicer import A2AServicer
from factory_server.api.crews import CrewServicer
from factory_server.api.factory import FactoryServicer
from factory_server.api.profiles import ProfileServicer
from factory_server.api.skills import SkillServicer
from factory_server.api.tools import ToolServicer
from factory_server.core.errors import FactoryError, Refused
from factory_server.core.model import AuditRow
from factory_server.services.audit import AuditLog
from factory_server.services.registry import RegistryFeed
from hyperfactory.v1 import (
    crew_service_pb2,
    crew_service_pb2_grpc,
    factory_service_pb2,
    factory_service_pb2_grpc,
    profile_service_pb2,
    profile_service_pb2_grpc,
    skill_service_pb2,
    skill_service_pb2_grpc,
    tool_service_pb2,
    tool_service_pb2_grpc,
)
from lf.a2a.v1 import a2a_pb2_grpc
from wire.channels import SERVER_OPTIONS
from wire.guarded import AuditRecord
from wire.health import HealthServicer, add_health
from wire.interceptors import GuardInterceptor
from wire.metrics import RpcMetrics
from wire.policy import HEALTH_SERVICE, PolicyTable
from wire.tokens import TokenVerifier
from wire.validation import RequestValidator

DESCRIPTORS = (
    crew_service_pb2.DESCRIPTOR.services_by_name["CrewService"],
    factory_service_pb2.DESCRIPTOR.services_by_name["FactoryService"],
    profile_service_pb2.DESCRIPTOR.services_by_name["ProfileService"],
    skill_service_pb2.DESCRIPTOR.services_by_name["SkillService"],
    tool_service_pb2.DESCRIPTOR.services_by_name["ToolService"],
)


@dataclass(frozen=True, slots=True)
class Servicers:
    """What is served."""

    crews: CrewServicer
    factory: FactoryServicer
    profiles: ProfileServicer
    tools: ToolServicer
    skills: SkillServicer
    health: HealthServicer


def build_guard(
    verifier: TokenVerifier, audit: AuditLog, registry: RegistryFeed, metrics: RpcMetrics
) -> GuardInterceptor:
    """What stands before every method, over gRPC and over HTTP; a method without a policy row is refused here."""
    return GuardInterceptor(
        PolicyTable.from_services(*DESCRIPTORS, foreign={a2a_policy.SERVICE: a2a_policy.rows()}),
        verifier,
        validator=RequestValidator(),
        audit=lambda record: audit.add(_row(record)),
        generation_check=lambda crew, agent, generation: check_generation(registry, crew, agent, generation),
        metrics=metrics,
    )


def build_server(servicers: Servicers, a2a: A2AServicer, guard: GuardInterceptor) -> Any:
    """A server without ports."""
    server = grpc.aio.server(interceptors=[guard], options=SERVER_OPTIONS)
    crew_service_pb2_grpc.add_CrewServiceServicer_to_server(servicers.crews, server)
    factory_service_pb2_grpc.add_FactoryServiceServicer_to_server(servicers.factory, server)
    profile_service_pb2_grpc.add_ProfileServiceServicer_to_server(servicers.profiles, server)
    tool_service_pb2_grpc.add_ToolServiceServicer_to_server(servicers.tools, server)
    skill_service_pb2_grpc.add_SkillServiceServicer_to_server(servicers.skills, server)
    a2a_pb2_grpc.add_A2AServiceServicer_to_server(a2a, server)
    add_health(servicers.health, server)
    channelz.add_channelz_servicer(server)  # type: ignore[arg-type]  # works on grpc.aio, its stub does not know
    names = [d.full_name for d in (*DESCRIPTORS, a2a_policy.SERVICE)]
    for name in names:
        servicers.health.set(name, False)
    reflection.enable_server_reflection([*names, HEALTH_SERVICE, reflection.SERVICE_NAME], server)
    return server


def check_generation(registry: RegistryFeed, crew: str, agent: str, generation: int) -> None:
    """Refuse an agent whose successor exists, or that is gone. `agent` is its name."""
    for row in registry.names().values():
        if row.crew == crew and row.name == agent:
            if row.generation != generation:
                raise _stale(agent, row.generation)
            return
    raise _stale(agent, 0)


def _stale(agent: str, generation: int) -> FactoryError:
    return Refused(
        f"agent '{agent}' has a newer instance, or none",
        reason="STALE_GENERATION",
        metadata={"generation": str(generation)},
    )


def _row(record: AuditRecord) -> AuditRow:
    return AuditRow(
        actor=record.caller.spiffe if record.caller else "",
        method=record.method,
        resource=record.resource,
        peer=record.peer,
        outcome=record.code,
        reason=record.reason,
    )
