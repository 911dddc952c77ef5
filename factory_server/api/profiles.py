"""ProfileService: decode, call, encode."""

from __future__ import annotations

from typing import Any

from factory_server.api import encode, pages
from factory_server.api.caller import actor
from factory_server.core import model
from factory_server.core.cursor import CursorCodec
from factory_server.services import profiles
from factory_server.services.parts import Parts
from hyperfactory.v1 import profile_service_pb2 as pb
from hyperfactory.v1 import profile_service_pb2_grpc, types_pb2


class ProfileServicer(profile_service_pb2_grpc.ProfileServiceServicer):
    """What the contract says of ProfileService."""

    def __init__(self, parts: Parts, codec: CursorCodec) -> None:
        self._parts = parts
        self._codec = codec

    def _profile(self, row: model.ProfileRow) -> types_pb2.Profile:
        return encode.profile(row, self._parts.images.seen(row.spec.base))

    async def CreateProfile(self, request: pb.CreateProfileRequest, context: Any) -> pb.CreateProfileResponse:
        row = await profiles.create(self._parts, request, actor())
        return pb.CreateProfileResponse(profile=self._profile(row))

    async def GetProfile(self, request: pb.GetProfileRequest, context: Any) -> pb.GetProfileResponse:
        row = await self._parts.store.get_profile(request.name)
        return pb.GetProfileResponse(profile=self._profile(row))

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: Any) -> pb.ListProfilesResponse:
        page = pages.page_of(self._codec, "profiles", request.page_size, request.page_token)
        found = await self._parts.store.list_profiles(page)
        shown, token = pages.split(self._codec, "profiles", page, found, "name")
        return pb.ListProfilesResponse(profiles=[self._profile(r) for r in shown], next_page_token=token)

    async def UpdateProfile(self, request: pb.UpdateProfileRequest, context: Any) -> pb.UpdateProfileResponse:
        row = await profiles.update(self._parts, request, actor())
        return pb.UpdateProfileResponse(profile=self._profile(row))
