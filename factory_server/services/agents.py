"""Spawn, stop, retry and lease single agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from factory_server.core import manifest as manifests
from factory_server.core import model, secrets
from factory_server.core.errors import FieldViolation, Invalid, Refused
from factory_server.core.lifecycle import SERVING, AgentState
from factory_server.services import networks
from factory_server.services.assemble import LOOK_AGAIN_S, wait_assembled
from factory_server.services.durations import seconds
from factory_server.services.parts import Parts
from factory_server.services.reconciler import LEASE_S, Reconciler
from factory_server.services.requests import key_of
from factory_server.services.wake import awaken
from hyperfactory.v1 import crew_service_pb2, factory_service_pb2

LEASE_DEFAULT_S = 60.0
SUFFIX_CHARS = 5


async def spawn(
    parts: Parts, reconciler: Reconciler, request: factory_service_pb2.SpawnAgentRequest, actor: str
) -> model.AgentRow:
    """One READY agent, in the crew named or in a crew of its own. Invalid, NotFound, Refused."""
    profiles = await parts.store.get_profiles([request.profile])
    if request.profile not in profiles:
        raise Invalid(
            f"cannot spawn agent: profile '{request.profile}' is unknown",
            violations=[
                FieldViolation("profile", f"profile '{request.profile}' is unknown", "UNKNOWN_PROFILE")
            ],
        )
    name = request.name or f"{request.profile[:20].rstrip('-')}-{parts.new_id('')[-SUFFIX_CHARS:]}"
    if name in manifests.RESERVED_NAMES:
        taken = FieldViolation("name", "the name is taken by the crew itself", "RESERVED")
        raise Invalid(f"cannot spawn agent: the name '{name}' is reserved", violations=[taken])
    wanted = secrets.named_in(profiles[request.profile].spec)
    await secrets.required(parts.secrets, wanted, "spawn agent")
    member = crew_service_pb2.CrewMember(name=name, profile=request.profile)
    key = key_of(actor, "SpawnAgent", request.request_id, request)
    if not request.crew:
        return await _spawn_solo(parts, reconciler, member, profiles, key, actor)
    plan = manifests.plan_agent(member, name, profiles[request.profile], parts.new_id)
    await networks.admit_members(parts, request.crew, [plan], key)
    agent, replayed = await parts.store.add_agent(
        request.crew, plan, key, actor, parts.owner, lease_s=LEASE_S
    )
    if not replayed:
        parts.measures.claims.labels("warm" if agent.warm else "cold").inc()
        reconciler.kick(agent.crew)
    return await wait_serving(parts, agent.id)


async def _spawn_solo(
    parts: Parts,
    reconciler: Reconciler,
    member: crew_service_pb2.CrewMember,
    profiles: Mapping[str, model.ProfileRow],
    key: model.RequestKey,
    actor: str,
) -> model.AgentRow:
    manifest = crew_service_pb2.CrewManifest(name=member.name, members=[member])
    plan = await networks.admit(parts, manifests.plan_crew(manifest, profiles, parts.new_id))
    solo = replace(plan, solo=True)
    recorded = await parts.store.assemble(solo, key, actor, parts.owner, lease_s=LEASE_S)
    if not recorded.replayed:
        reconciler.adopt(recorded.crew)
    crew = await wait_assembled(parts, reconciler, recorded.crew.id)
    return crew.agents[0]


async def wait_serving(parts: Parts, agent_id: str) -> model.AgentRow:
    """The agent once it serves. Refused where it ends instead."""
    agent = await parts.store.get_agent(agent_id)
    with parts.hub.subscribe(agent.crew) as rings:
        while True:
            if agent.state in SERVING:
                return agent
            if agent.state in (AgentState.FAILED, AgentState.DRAINING, AgentState.STOPPED):
                raise Refused(
                    f"agent '{agent.name}' is {agent.state}: {agent.message}",
                    metadata={"state": agent.state},
                )
            await rings.wait(LOOK_AGAIN_S)
            agent = await parts.store.get_agent(agent_id)


async def stop(
    parts: Parts, reconciler: Reconciler, request: factory_service_pb2.StopAgentRequest, actor: str
) -> model.AgentRow:
    """The agent, on its way out. NotFound."""
    key = key_of(actor, "StopAgent", request.request_id, request)
    agent = await parts.store.stop_agent(request.agent, key, actor, drain_s=seconds(request.grace))
    reconciler.kick(agent.crew)
    return agent


async def retry(
    parts: Parts, reconciler: Reconciler, request: factory_service_pb2.RetryAgentRequest, actor: str
) -> model.AgentRow:
    """A FAILED agent, PROVISIONING again. NotFound, Refused."""
    key = key_of(actor, "RetryAgent", request.request_id, request)
    agent = await parts.store.retry_agent(request.agent, key, actor)
    reconciler.kick(agent.crew)
    return agent


async def acquire(
    parts: Parts, request: factory_service_pb2.AcquireAgentRequest, actor: str
) -> model.AgentRow:
    """The agent, BUSY for the caller; one that hibernates is woken for it. NotFound, Refused."""
    key = key_of(actor, "AcquireAgent", request.request_id, request)
    lease_s = seconds(request.lease, LEASE_DEFAULT_S)
    while True:
        try:
            return await parts.store.acquire(request.agent, key, actor, holder=actor, lease_s=lease_s)
        except Refused as refused:
            asleep = refused.metadata.get("state") == AgentState.HIBERNATING
            if not asleep and "frozen" not in refused.metadata:
                raise
        await awaken(parts, request.agent, "Acquired")


async def renew(parts: Parts, request: factory_service_pb2.RenewLeaseRequest, actor: str) -> model.AgentRow:
    """The lease, prolonged. NotFound, Refused."""
    key = key_of(actor, "RenewLease", request.request_id, request)
    lease_s = seconds(request.lease, LEASE_DEFAULT_S)
    return await parts.store.renew(
        request.agent, request.generation, key, actor, holder=actor, lease_s=lease_s
    )


async def release(
    parts: Parts, request: factory_service_pb2.ReleaseAgentRequest, actor: str
) -> model.AgentRow:
    """The agent, READY again. NotFound, Refused."""
    key = key_of(actor, "ReleaseAgent", request.request_id, request)
    return await parts.store.release(request.agent, request.generation, key, actor, holder=actor)
