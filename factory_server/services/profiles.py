"""Profiles: make, change and find what kinds of agents there are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from factory_server.core import model
from factory_server.core import profiles as checks
from factory_server.core.errors import FieldViolation, Invalid, Stale
from factory_server.services import skills
from factory_server.services.parts import Parts
from factory_server.services.requests import key_of
from hyperfactory.v1 import profile_service_pb2, types_pb2

BUILT_IN = {
    "generic": (
        "agent_runtime.profiles.generic:Generic",
        "coder",
        "Any agent: file tools, chat, memory.",
    ),
    "planner": (
        "agent_runtime.profiles.planner:Planner",
        "coder",
        "Splits a mission over coders, asks the reviewer.",
    ),
    "coder": ("agent_runtime.profiles.coder:Coder", "coder", "Writes and runs programs in its workspace."),
    "reviewer": ("agent_runtime.profiles.reviewer:Reviewer", "reviewer", "Reads results and approves them."),
}
"""Profiles that always exist: entry point, scope, description."""
UPDATABLE = ("spec", "description")


def digest_of(spec: types_pb2.ProfileSpec) -> str:
    """`sha256:…` of the canonical spec."""
    return "sha256:" + hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()


async def ensure_built_in(parts: Parts) -> None:
    """Make or refresh the profiles that always exist."""
    for name, (entry_point, scope, description) in BUILT_IN.items():
        spec = types_pb2.ProfileSpec(
            base="python", entry_point=entry_point, scope=scope, health_interval=Duration(seconds=2)
        )
        if name == "generic":
            spec.entry_point = ""
            spec.config.CopyFrom(Struct())
        await parts.store.ensure_profile(await _row(parts, name, spec, "PRODUCTION", description))


async def create(
    parts: Parts, request: profile_service_pb2.CreateProfileRequest, actor: str
) -> model.ProfileRow:
    """The profile as stored, a DRAFT. AlreadyExists."""
    given = request.profile
    if not given.HasField("spec"):
        raise Invalid(
            "cannot create profile: spec is missing",
            violations=[FieldViolation("profile.spec", "is missing", "REQUIRED")],
        )
    await skills.check_pins(parts, {"profile.spec.skills": given.spec.skills})
    row = await _row(parts, given.name, given.spec, "DRAFT", given.description)
    if request.validate_only:
        return row
    return await parts.store.create_profile(row, key_of(actor, "CreateProfile", request.request_id, request))


async def update(
    parts: Parts, request: profile_service_pb2.UpdateProfileRequest, actor: str
) -> model.ProfileRow:
    """The profile as stored, one version on. NotFound, Stale (etag), Invalid (mask)."""
    key = key_of(actor, "UpdateProfile", request.request_id, request)
    now = await parts.store.get_profile(request.profile.name)
    given = request.profile
    if await parts.store.find_request(key) is None and given.etag and given.etag != etag_of(now):
        raise Stale(f"profile '{now.name}' has changed: its etag is not '{given.etag}'")
    spec, description = _merged(now, given, request.update_mask)
    await skills.check_pins(parts, {"profile.spec.skills": spec.skills})
    stage = "DRAFT" if digest_of(spec) != now.digest else now.stage
    row = await _row(parts, now.name, spec, stage, description)
    if request.validate_only:
        return row
    return await parts.store.update_profile(row, now.version, key)


def etag_of(row: model.ProfileRow) -> str:
    """Changes with each write."""
    return f"{row.version}-{row.digest[7:19]}"


async def list_page(parts: Parts, page: model.Page) -> Sequence[model.ProfileRow]:
    """By name, one more than asked where more follow."""
    return await parts.store.list_profiles(page)


def _merged(
    now: model.ProfileRow, given: types_pb2.Profile, mask: FieldMask
) -> tuple[types_pb2.ProfileSpec, str]:
    """The present profile with the masked fields taken from the request; no mask: all that are set."""
    paths = list(mask.paths) or [
        path for path in UPDATABLE if (given.HasField("spec") if path == "spec" else given.description)
    ]
    whole = types_pb2.Profile(spec=now.spec, description=now.description)
    for path in paths:
        if path not in UPDATABLE and not path.startswith("spec."):
            text = f"'{path}' cannot be changed"
            raise Invalid(
                f"cannot update profile: {text}",
                violations=[FieldViolation("update_mask", text, "MASK_INVALID")],
            )
    try:
        FieldMask(paths=paths).MergeMessage(given, whole, replace_message_field=True)
    except ValueError as error:
        raise Invalid(
            f"cannot update profile: {error}",
            violations=[FieldViolation("update_mask", str(error), "MASK_INVALID")],
        ) from error
    return whole.spec, whole.description


async def _row(
    parts: Parts, name: str, spec: types_pb2.ProfileSpec, stage: str, description: str
) -> model.ProfileRow:
    if wrong := list(checks.violations(spec)):
        first = wrong[0]
        raise Invalid(f"cannot keep profile '{name}': {first.field}: {first.description}", violations=wrong)
    filled = types_pb2.ProfileSpec()
    filled.CopyFrom(spec)
    filled.base = filled.base or "python"
    filled.scope = filled.scope or "coder"
    if not filled.HasField("health_interval"):
        filled.health_interval.seconds = 2
    now, image = parts.now(), await parts.images.look(filled.base)
    return model.ProfileRow(name, 1, digest_of(filled), filled, stage, description, now, now, image)
