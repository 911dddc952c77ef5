"""Turn a manifest into a plan, or say what is wrong with it, field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from factory_server.core import egress
from factory_server.core.errors import FieldViolation, Invalid
from factory_server.core.model import AgentPlan, CrewPlan, ProfileRow
from factory_server.core.scopes import width
from hyperfactory.v1 import crew_service_pb2, types_pb2

MANIFEST_BYTES_MAX = 256 * 1024
MEMBERS_MAX = 500
NAME_CHARS_MAX = 63
CONTEXT_VALUE_BYTES_MAX = 64 * 1024
RESERVED_NAMES = frozenset({"bus", "egress"})
"""A member's socket is called like the member; these are the crew's own."""

NewId = Callable[[str], str]
"""Makes an id with the given prefix."""


def check_size(manifest: crew_service_pb2.CrewManifest) -> None:
    """Refuse what is too large to be looked at more closely. Invalid."""
    size = manifest.ByteSize()
    if size > MANIFEST_BYTES_MAX:
        raise _invalid(
            [
                FieldViolation(
                    "manifest", f"is {size} bytes, at most {MANIFEST_BYTES_MAX} are allowed", "TOO_LARGE"
                )
            ]
        )


def plan_crew(
    manifest: crew_service_pb2.CrewManifest, profiles: Mapping[str, ProfileRow], new_id: NewId
) -> CrewPlan:
    """The crew that the manifest wishes. Invalid, with a violation for each bad field."""
    violations = list(_violations(manifest, profiles))
    if violations:
        raise _invalid(violations)
    agents = [
        plan_agent(member, name, profiles[member.profile], new_id)
        for member in manifest.members
        for name in agent_names(member)
    ]
    return CrewPlan(id=new_id("c"), uid=new_id("k"), manifest=manifest, agents=agents)


def agent_names(member: crew_service_pb2.CrewMember) -> list[str]:
    """The names of a group's agents."""
    replicas = replicas_of(member)
    if replicas == 1:
        return [member.name]
    return [f"{member.name}-{i}" for i in range(1, replicas + 1)]


def replicas_of(member: crew_service_pb2.CrewMember) -> int:
    """How many agents a member stands for."""
    return member.replicas if member.HasField("replicas") else 1


def plan_agent(
    member: crew_service_pb2.CrewMember, name: str, profile: ProfileRow, new_id: NewId
) -> AgentPlan:
    """One agent of a group: the profile with the member's own wishes merged in."""
    spec = types_pb2.ProfileSpec()
    spec.CopyFrom(profile.spec)
    for key, value in member.env.items():
        spec.env[key] = value
    spec.skills.extend(s for s in member.skills if s not in spec.skills)
    return AgentPlan(
        id=new_id("a"),
        uid=new_id("u"),
        name=name,
        group=member.name,
        replicas=replicas_of(member),
        profile=profile.name,
        profile_digest=profile.digest,
        spec=spec,
        scope=member.scope or spec.scope or "coder",
        labels=dict(member.labels),
    )


def _violations(
    manifest: crew_service_pb2.CrewManifest, profiles: Mapping[str, ProfileRow]
) -> Iterator[FieldViolation]:
    total = sum(replicas_of(m) for m in manifest.members)
    if total > MEMBERS_MAX:
        yield FieldViolation(
            "manifest.members", f"wishes {total} agents, at most {MEMBERS_MAX} are allowed", "TOO_MANY"
        )
        return
    taken: dict[str, int] = {}
    for i, member in enumerate(manifest.members):
        if member.name in RESERVED_NAMES:
            yield FieldViolation(
                f"manifest.members[{i}].name", "the name is taken by the crew itself", "RESERVED"
            )
        yield from _member_violations(f"manifest.members[{i}]", member, profiles)
        for name in {member.name, *agent_names(member)}:
            if name in taken:
                yield FieldViolation(
                    f"manifest.members[{i}].name",
                    f"the name '{name}' is taken by members[{taken[name]}]",
                    "DUPLICATE",
                )
                break
            taken[name] = i
    if manifest.policy.min_ready > total:
        yield FieldViolation(
            "manifest.policy.min_ready",
            f"is {manifest.policy.min_ready}, the crew has {total} agents",
            "TOO_LARGE",
        )
    for key, value in manifest.context.items():
        if value.ByteSize() > CONTEXT_VALUE_BYTES_MAX:
            yield FieldViolation(
                f'manifest.context["{key}"]', f"is larger than {CONTEXT_VALUE_BYTES_MAX} bytes", "TOO_LARGE"
            )
    if manifest.network.egress_hosts and not manifest.network.allow_egress:
        yield FieldViolation(
            "manifest.network.egress_hosts", "means nothing unless allow_egress is true", "CONTRADICTION"
        )
    for i, text in enumerate(manifest.network.egress_hosts):
        if isinstance(wrong := egress.parse_pattern(text), egress.Refusal):
            yield FieldViolation(f"manifest.network.egress_hosts[{i}]", wrong.message, wrong.reason)


def _member_violations(
    path: str, member: crew_service_pb2.CrewMember, profiles: Mapping[str, ProfileRow]
) -> Iterator[FieldViolation]:
    profile = profiles.get(member.profile)
    if profile is None:
        yield FieldViolation(f"{path}.profile", f"profile '{member.profile}' is unknown", "UNKNOWN_PROFILE")
        return
    if profile.stage == "RETIRED":
        yield FieldViolation(f"{path}.profile", f"profile '{member.profile}' is retired", "RETIRED_PROFILE")
    own = profile.spec.scope or "coder"
    if member.scope and width(member.scope) > width(own):
        yield FieldViolation(
            f"{path}.scope", f"'{member.scope}' is wider than the profile's '{own}'", "SCOPE_WIDENED"
        )
    if any(len(name) > NAME_CHARS_MAX for name in agent_names(member)):
        yield FieldViolation(f"{path}.name", f"is too long for {replicas_of(member)} replicas", "TOO_LONG")


def _invalid(violations: list[FieldViolation]) -> Invalid:
    first = violations[0]
    return Invalid(f"cannot assemble crew: {first.field}: {first.description}", violations=violations)
