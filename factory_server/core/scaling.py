"""What a new manifest changes in a crew that lives: who comes, who goes, and what cannot be changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from factory_server.core.errors import FieldViolation, Invalid, Refused
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.manifest import agent_names
from factory_server.core.model import AgentPlan, AgentRow, CrewPlan, CrewRow
from hyperfactory.v1 import crew_service_pb2

UPDATABLE = frozenset({CrewState.READY, CrewState.DEGRADED})
"""One that is still being assembled is made whole or not at all, by the manifest that it began with."""


@dataclass(frozen=True, slots=True)
class CrewChange:
    """What to do to a crew's members, and its manifest afterwards."""

    manifest: crew_service_pb2.CrewManifest
    added: Sequence[AgentPlan]
    removed: Sequence[AgentRow]
    replicas: Mapping[str, int] = field(default_factory=dict)
    """Of members that stay in a group of another size, by id."""
    expires_at: datetime | None = None

    @property
    def summary(self) -> str:
        """For the crew's log."""
        parts = [("added", [a.name for a in self.added]), ("removed", [a.name for a in self.removed])]
        return "; ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in parts if names)


def change(crew: CrewRow, plan: CrewPlan, now: datetime) -> CrewChange:
    """What makes the crew the planned one. Invalid, naming each field; Refused for a crew that is not updatable
    and for a name whose bearer is still on its way out.

    Members that joined singly (SpawnAgent) are nobody's business here: they stay. One of the manifest's that was
    stopped singly comes again, as the manifest says so.
    """
    if crew.state not in UPDATABLE or crew.solo:
        what = "the crew of a single agent" if crew.solo else str(crew.state)
        raise Refused(
            f"cannot update crew '{crew.name}': it is {what}",
            metadata={"state": str(crew.state), "solo": str(crew.solo).lower()},
        )
    expires_at = _expiry(crew, plan.manifest)
    violations = [*_violations(crew, plan), *_ttl_violations(expires_at, now)]
    if violations:
        first = violations[0]
        raise Invalid(f"cannot update crew: {first.field}: {first.description}", violations=violations)
    bearers = {agent.name: agent for agent in crew.agents if agent.state is not AgentState.STOPPED}
    leaving = [
        name for name in _wanted(plan) if name in bearers and bearers[name].state is AgentState.DRAINING
    ]
    if leaving:
        raise Refused(
            f"cannot update crew '{crew.name}': agent '{leaving[0]}' is still on its way out",
            metadata={"state": str(AgentState.DRAINING), "member": leaving[0]},
        )
    return _changed(crew, plan, bearers, expires_at)


def _changed(
    crew: CrewRow, plan: CrewPlan, bearers: Mapping[str, AgentRow], expires_at: datetime | None
) -> CrewChange:
    wanted = _wanted(plan)
    manifest = crew_service_pb2.CrewManifest()
    manifest.CopyFrom(plan.manifest)
    manifest.network.CopyFrom(crew.manifest.network)
    manifest.ClearField("context")
    manifest.MergeFrom(crew_service_pb2.CrewManifest(context=crew.manifest.context))
    stays = [(bearers[name], planned) for name, planned in wanted.items() if name in bearers]
    return CrewChange(
        manifest=manifest,
        added=[planned for name, planned in wanted.items() if name not in bearers],
        removed=[
            bearers[name]
            for name in _names(crew.manifest)
            if name in bearers and name not in wanted and bearers[name].state is not AgentState.DRAINING
        ],
        replicas={agent.id: new.replicas for agent, new in stays if agent.replicas != new.replicas},
        expires_at=expires_at,
    )


def _violations(crew: CrewRow, plan: CrewPlan) -> Iterator[FieldViolation]:
    old, new = crew.manifest, plan.manifest
    if new.name != old.name:
        yield _fixed("manifest.name", f"the crew's name stays '{old.name}'")
    if new.context and new.context != old.context:
        yield _fixed("manifest.context", "has the first values only; PutContext changes them")
    network = crew_service_pb2.CrewNetwork()
    network.CopyFrom(new.network)
    network.mode = network.mode or old.network.mode
    if new.HasField("network") and network != old.network:
        yield _fixed("manifest.network", "a crew keeps the network that it was assembled with")
    before = {member.name: member for member in old.members}
    ours = _names(old)
    taken = {a.name for a in crew.agents if a.state is not AgentState.STOPPED and a.name not in ours}
    for i, member in enumerate(new.members):
        path = f"manifest.members[{i}]"
        if member.name in before:
            yield from _member_violations(path, before[member.name], member)
        for name in {member.name, *agent_names(member)} & taken:
            yield FieldViolation(
                f"{path}.name", f"the name '{name}' is taken by an agent that joined singly", "DUPLICATE"
            )


def _member_violations(
    path: str, old: crew_service_pb2.CrewMember, new: crew_service_pb2.CrewMember
) -> Iterator[FieldViolation]:
    for descriptor in new.DESCRIPTOR.fields:
        name = descriptor.name
        if name != "replicas" and getattr(old, name) != getattr(new, name):
            yield _fixed(
                f"{path}.{name}", f"a member is not changed; give the new one another name than '{new.name}'"
            )


def _ttl_violations(expires_at: datetime | None, now: datetime) -> Iterator[FieldViolation]:
    if expires_at is not None and expires_at <= now:
        yield FieldViolation(
            "manifest.ttl", "is over already: it counts from the crew's creation", "TOO_SMALL"
        )


def _expiry(crew: CrewRow, manifest: crew_service_pb2.CrewManifest) -> datetime | None:
    return crew.created_at + manifest.ttl.ToTimedelta() if manifest.HasField("ttl") else None


def _names(manifest: crew_service_pb2.CrewManifest) -> list[str]:
    return [name for member in manifest.members for name in agent_names(member)]


def _wanted(plan: CrewPlan) -> dict[str, AgentPlan]:
    return {agent.name: agent for agent in plan.agents}


def _fixed(path: str, description: str) -> FieldViolation:
    return FieldViolation(path, description, "IMMUTABLE")
