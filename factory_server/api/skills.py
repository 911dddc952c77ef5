"""SkillService: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.struct_pb2 import Struct

from factory_server.api import pages
from factory_server.api.caller import actor
from factory_server.api.encode import Encoder, timestamp
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import FieldViolation, Invalid
from factory_server.core.skills import PackRow
from factory_server.services import skills
from factory_server.services.parts import Parts
from hyperfactory.v1 import skill_service_pb2 as pb
from hyperfactory.v1 import skill_service_pb2_grpc


class SkillServicer(skill_service_pb2_grpc.SkillServiceServicer):
    """What the contract says of SkillService."""

    def __init__(self, parts: Parts, mounts: skills.Mounts, encoder: Encoder, codec: CursorCodec) -> None:
        self._parts = parts
        self._mounts = mounts
        self._publisher = skills.Publisher(parts)
        self._encoder = encoder
        self._codec = codec

    async def PublishSkillPack(
        self, request_iterator: AsyncIterator[pb.PublishSkillPackRequest], context: Any
    ) -> pb.PublishSkillPackResponse:
        first = await anext(aiter(request_iterator), pb.PublishSkillPackRequest())
        if first.WhichOneof("piece") != "header":
            raise _misplaced("the header does not come first")
        row, existed = await self._publisher.publish(first.header, _pieces(request_iterator), actor())
        return pb.PublishSkillPackResponse(pack=_pack(row, whole=True), existed=existed)

    async def GetSkillPack(self, request: pb.GetSkillPackRequest, context: Any) -> pb.GetSkillPackResponse:
        return pb.GetSkillPackResponse(pack=_pack(await skills.find(self._parts, request.skill), whole=True))

    async def ListSkillPacks(
        self, request: pb.ListSkillPacksRequest, context: Any
    ) -> pb.ListSkillPacksResponse:
        page = pages.page_of(self._codec, "skills", request.page_size, request.page_token)
        found = await self._parts.store.list_skills(page)
        shown, token = pages.split(self._codec, "skills", page, found, "place")
        return pb.ListSkillPacksResponse(
            packs=[_pack(row, whole=False) for row in shown], next_page_token=token
        )

    async def MountSkillPack(
        self, request: pb.MountSkillPackRequest, context: Any
    ) -> pb.MountSkillPackResponse:
        row, tools = await self._mounts.mount(request, actor())
        return pb.MountSkillPackResponse(agent=self._encoder.agent(row), tools=tools)

    async def UnmountSkillPack(
        self, request: pb.UnmountSkillPackRequest, context: Any
    ) -> pb.UnmountSkillPackResponse:
        row = await self._mounts.unmount(request, actor())
        return pb.UnmountSkillPackResponse(agent=self._encoder.agent(row))


async def _pieces(requests: AsyncIterator[pb.PublishSkillPackRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("piece") != "chunk":
            raise _misplaced("the header comes twice")
        yield request.chunk


def _misplaced(text: str) -> Invalid:
    return Invalid(f"cannot publish: {text}", violations=[FieldViolation("header", text, "MISPLACED")])


def _pack(row: PackRow, *, whole: bool) -> pb.SkillPack:
    pack = row.pack
    frontmatter = Struct()
    frontmatter.update(pack.frontmatter)
    return pb.SkillPack(
        name=pack.name,
        digest=pack.digest,
        description=pack.description,
        frontmatter=frontmatter,
        files=skills.file_messages(pack) if whole else (),
        size=pack.size,
        signature=row.signature,
        key_id=row.key_id,
        tools=skills.tool_messages(pack),
        create_time=timestamp(row.created_at),
        publisher=row.publisher,
    )
