"""List, show, create and update profiles."""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask

from factory_cli import manifest
from factory_cli.client import CALL_WITHIN_S, Client
from factory_cli.output import Output, enum_name
from factory_cli.requests import PAGE_SIZE, new_id, pages
from hyperfactory.v1 import profile_service_pb2, types_pb2
from wire.proto_json import fill, load_object


async def list_(client: Client, out: Output) -> None:
    """Print profiles by name."""

    async def fetch(token: str) -> profile_service_pb2.ListProfilesResponse:
        request = profile_service_pb2.ListProfilesRequest(page_size=PAGE_SIZE, page_token=token)
        return await client.profiles.ListProfiles(request, timeout=CALL_WITHIN_S)

    found = [profile async for page in pages(fetch) for profile in page.profiles]
    if out.as_json:
        out.document({"profiles": found})
        return
    rows = [(p.name, p.version, enum_name(p, "stage"), p.spec.scope, p.description) for p in found]
    out.table(("NAME", "VERSION", "STAGE", "SCOPE", "DESCRIPTION"), rows)


async def get(client: Client, out: Output, name: str) -> None:
    """Print one profile."""
    out.document(await _fetch(client, name))


async def create(client: Client, out: Output, file: str, *, validate_only: bool) -> None:
    """Make a profile from a JSON file."""
    request = profile_service_pb2.CreateProfileRequest(
        request_id=new_id(), profile=_read(file), validate_only=validate_only
    )
    answer = await client.profiles.CreateProfile(request, timeout=CALL_WITHIN_S)
    out.document(answer.profile)


async def update(client: Client, out: Output, file: str, mask: str, *, validate_only: bool) -> None:
    """Change a profile by a JSON file; what the file does not say stays."""
    profile = _read(file)
    paths = mask.split(",") if mask else []
    if not profile.HasField("spec"):
        # The contract wants a whole spec in every update; the mask says what of it counts.
        paths = paths or [
            field.name for field, _ in profile.ListFields() if field.name not in ("name", "etag")
        ]
        profile.spec.CopyFrom((await _fetch(client, profile.name)).spec)
    request = profile_service_pb2.UpdateProfileRequest(
        request_id=new_id(),
        profile=profile,
        update_mask=FieldMask(paths=paths) if paths else None,
        validate_only=validate_only,
    )
    answer = await client.profiles.UpdateProfile(request, timeout=CALL_WITHIN_S)
    out.document(answer.profile)


async def _fetch(client: Client, name: str) -> types_pb2.Profile:
    request = profile_service_pb2.GetProfileRequest(name=name)
    return (await client.profiles.GetProfile(request, timeout=CALL_WITHIN_S)).profile


def _read(file: str) -> types_pb2.Profile:
    body = load_object(manifest.read_text(file), "profile")
    return fill(body, types_pb2.Profile(), "profile")
