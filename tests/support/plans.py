"""Make crews, profiles and steps to try a store with."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from factory_server.core.lifecycle import AgentEvent, AgentState
from factory_server.core.model import (
    AgentPlan,
    AgentRow,
    CrewPlan,
    CrewRow,
    ProfileRow,
    RequestKey,
    SandboxFact,
    Step,
)
from factory_server.core.ports import Store
from hyperfactory.v1 import crew_service_pb2, types_pb2

_NUMBERS = itertools.count(1)
OWNER = "factory-1"
LEASE_S = 30.0
E, S = AgentEvent, AgentState


def unique(prefix: str) -> str:
    """An id that sorts by creation."""
    return f"{prefix}{next(_NUMBERS):08}{secrets.token_hex(3)}"


def agent_plan(name: str, *, base: str = "python", labels: dict[str, str] | None = None) -> AgentPlan:
    """An agent to be made."""
    own = unique("a")
    return AgentPlan(
        id=own,
        uid=f"u{own}",
        name=name,
        group=name,
        replicas=1,
        profile="coder",
        profile_digest="sha256:1",
        spec=types_pb2.ProfileSpec(base=base, entry_point="demo:Agent"),
        scope="coder",
        labels=labels or {},
    )


def crew_plan(
    agents: int = 1,
    *,
    name: str = "demo",
    base: str = "python",
    solo: bool = False,
    min_ready: int = 0,
    ttl_s: int = 0,
    labels: dict[str, str] | None = None,
) -> CrewPlan:
    """A crew to be made, with agents `w-0` and so on."""
    manifest = crew_service_pb2.CrewManifest(name=name, labels=labels or {})
    manifest.policy.min_ready = min_ready
    if ttl_s:
        manifest.ttl.seconds = ttl_s
    own = unique("c")
    plans = [agent_plan(f"w-{number}", base=base, labels=labels) for number in range(agents)]
    manifest.members.extend(crew_service_pb2.CrewMember(name=p.name, profile=p.profile) for p in plans)
    return CrewPlan(id=own, uid=f"u{own}", manifest=manifest, agents=plans, solo=solo)


def request(method: str = "Assemble", request_id: str = "", request_hash: bytes = b"1") -> RequestKey:
    """An idempotency key."""
    return RequestKey("operator/alice", method, request_id or unique("r"), request_hash)


def step(agent: AgentRow, event: AgentEvent, **more: object) -> Step:
    """A step from where the agent is."""
    return Step(agent.id, agent.generation, (agent.state,), event, "factory", **more)  # type: ignore[arg-type]


def started(agent: AgentRow) -> Step:
    """The step of an instance that answers."""
    assert agent.instance is not None
    return step(agent, E.INSTANCE_STARTED, sandbox=fact(agent.instance.id))


def fact(instance: str) -> SandboxFact:
    """Where an instance answers."""
    return SandboxFact(instance, "fake", f"unix:///run/{instance}/ctl.sock", 4711, "")


async def assemble(store: Store, **options: object) -> CrewRow:
    """A crew that was just recorded."""
    plan = crew_plan(**options)  # type: ignore[arg-type]
    return (await store.assemble(plan, None, "operator/alice", OWNER, lease_s=LEASE_S)).crew


async def advance(store: Store, agents: Sequence[AgentRow], event: AgentEvent) -> list[AgentRow]:
    """Move agents of one crew by one event; all must win."""
    make = started if event is E.INSTANCE_STARTED else lambda agent: step(agent, event, direct="unix:///svc")
    done = await store.step(agents[0].crew, [make(agent) for agent in agents])
    rows = [result.agent for result in done.results if result.agent is not None]
    assert len(rows) == len(agents)
    return rows


async def ready_crew(store: Store, **options: object) -> CrewRow:
    """A crew whose agents are all READY."""
    crew = await assemble(store, **options)
    warming = await advance(store, crew.agents, E.INSTANCE_STARTED)
    await advance(store, warming, E.HEALTH_OK)
    return await store.get_crew(crew.id)


async def ready_agent(store: Store, **options: object) -> AgentRow:
    """The only agent of a READY crew."""
    return (await ready_crew(store, **options)).agents[0]


async def fill_pool(store: Store, count: int, base: str = "python") -> list[str]:
    """A pool with so many WARM instances; their ids."""
    await store.set_pool(base, count, None, "operator/alice")
    intents = await store.plan_refill(base, count, OWNER)
    for intent in intents:
        assert await store.pool_started(fact(intent.id))
    return [intent.id for intent in intents]


def profile(name: str = "coder", digest: str = "sha256:1", base: str = "python") -> ProfileRow:
    """A profile to be written; version and times are the store's."""
    never = datetime.fromtimestamp(0, UTC)
    spec = types_pb2.ProfileSpec(base=base)
    return ProfileRow(name, 0, digest, spec, "PRODUCTION", "writes code", never, never)
