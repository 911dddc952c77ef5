"""Publish, list and show skill packs; mount them into agents and take them away."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from factory_cli.client import CALL_WITHIN_S, Client
from factory_cli.failures import UsageFailedError
from factory_cli.output import Output
from factory_cli.requests import PAGE_SIZE, new_id, pages
from hyperfactory.v1 import skill_service_pb2 as pb

PUBLISH_WITHIN_S = 120.0
CHUNK_BYTES = 512 * 1024
ARCHIVE_MAX_BYTES = 18 * 1024 * 1024
FILES_MAX = 512
_ARCHIVES = (".tar", ".tar.gz", ".tgz")


async def publish(client: Client, out: Output, path: str, digest: str, *, validate_only: bool) -> None:
    """Store a pack from its directory or archive, and print the pin by which profiles name it."""
    header = pb.SkillPackHeader(request_id=new_id(), digest=digest, validate_only=validate_only)
    call = client.skills.PublishSkillPack(_stream(header, _archive(Path(path))), timeout=PUBLISH_WITHIN_S)
    answer = await call
    if out.as_json:
        out.document(answer)
        return
    out.text(_pin(answer.pack))
    if answer.existed:
        out.note("it was there before")


async def list_(client: Client, out: Output) -> None:
    """Print packs by name, newest first within a name."""

    async def fetch(token: str) -> pb.ListSkillPacksResponse:
        request = pb.ListSkillPacksRequest(page_size=PAGE_SIZE, page_token=token)
        return await client.skills.ListSkillPacks(request, timeout=CALL_WITHIN_S)

    found = [pack async for page in pages(fetch) for pack in page.packs]
    if out.as_json:
        out.document({"packs": found})
        return
    rows = [(p.name, p.digest, p.size, len(p.tools), p.description) for p in found]
    out.table(("NAME", "DIGEST", "BYTES", "TOOLS", "DESCRIPTION"), rows)


async def get(client: Client, out: Output, skill: str) -> None:
    """Print one pack with its files."""
    answer = await client.skills.GetSkillPack(pb.GetSkillPackRequest(skill=skill), timeout=CALL_WITHIN_S)
    out.document(answer.pack)


async def mount(client: Client, out: Output, reference: str, skill: str) -> None:
    """Mount a pack into a running agent; a name alone is its newest version as it is now."""
    if "@" not in skill:
        newest = pb.GetSkillPackRequest(skill=skill)
        skill = _pin((await client.skills.GetSkillPack(newest, timeout=CALL_WITHIN_S)).pack)
    request = pb.MountSkillPackRequest(
        request_id=new_id(), agent=await client.agent_id(reference), skill=skill
    )
    answer = await client.skills.MountSkillPack(request, timeout=CALL_WITHIN_S)
    if out.as_json:
        out.document(answer)
        return
    out.text(f"{skill} at /skills/{skill.partition('@')[0]} of agent {answer.agent.id}")
    out.table(("TOOL", "DESCRIPTION"), [(tool.name, tool.description) for tool in answer.tools])


async def unmount(client: Client, out: Output, reference: str, name: str) -> None:
    """Take a pack away from a running agent."""
    request = pb.UnmountSkillPackRequest(
        request_id=new_id(), agent=await client.agent_id(reference), name=name.partition("@")[0]
    )
    answer = await client.skills.UnmountSkillPack(request, timeout=CALL_WITHIN_S)
    if out.as_json:
        out.document(answer)
        return
    left = ", ".join(answer.agent.skills) or "no skill pack"
    out.text(f"agent {answer.agent.id} has {left}")


async def _stream(header: pb.SkillPackHeader, archive: bytes) -> AsyncIterator[pb.PublishSkillPackRequest]:
    yield pb.PublishSkillPackRequest(header=header)
    for at in range(0, len(archive), CHUNK_BYTES):
        yield pb.PublishSkillPackRequest(chunk=archive[at : at + CHUNK_BYTES])


def _archive(path: Path) -> bytes:
    if path.is_dir():
        return _packed(path)
    if not path.name.endswith(_ARCHIVES) or not path.is_file():
        raise UsageFailedError(f"cannot publish '{path}': it is no directory and no {', '.join(_ARCHIVES)}")
    if path.stat().st_size > ARCHIVE_MAX_BYTES:
        raise UsageFailedError(f"cannot publish '{path}': it has more than {ARCHIVE_MAX_BYTES} bytes")
    return path.read_bytes()


def _packed(directory: Path) -> bytes:
    """The directory as an archive that is the same for the same files; links are not followed and not packed."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for file in sorted(_files(directory)):
            if made.tell() > ARCHIVE_MAX_BYTES:
                raise UsageFailedError(f"cannot publish '{directory}': it is too large")
            info = tarfile.TarInfo(str(file.relative_to(directory)))
            data = file.read_bytes()
            info.size, info.mode = len(data), 0o755 if file.stat().st_mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def _files(directory: Path) -> Iterator[Path]:
    count = 0
    for path in directory.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise UsageFailedError(f"cannot publish '{directory}': '{path}' is a link or no file")
        if path.is_file():
            count += 1
            if count > FILES_MAX:
                raise UsageFailedError(f"cannot publish '{directory}': it has more than {FILES_MAX} files")
            yield path


def _pin(pack: pb.SkillPack) -> str:
    return f"{pack.name}@{pack.digest}"
