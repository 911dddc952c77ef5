"""Behind the guard, reflection works for whoever has a certificate, and channelz for admins."""

from __future__ import annotations

import dataclasses
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from wire.errors import Denied, Unauthenticated
from wire.status import from_rpc_error

CALL_MAX_S = 10.0


async def dialed(world: Any, factory: Any, identity: Any) -> grpc.aio.Channel:
    def add(server: grpc.aio.Server) -> None:
        factory(world)(server)
        channelz.add_channelz_servicer(server)  # type: ignore[arg-type]
        reflection.enable_server_reflection([reflection.SERVICE_NAME], server)

    return await world.dial(await world.serve(add), identity)


async def test_reflection_asks_for_a_certificate_only(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory, dataclasses.replace(world.operator(), token=""))
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=CALL_MAX_S)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    assert [one.name for one in answer.list_services_response.service] == [reflection.SERVICE_NAME]
    await call.done_writing()


async def test_channelz_is_served_to_admins(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory, world.operator())
    stub = channelz_pb2_grpc.ChannelzStub(channel)
    answer = await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=CALL_MAX_S)
    assert answer.server


@pytest.mark.parametrize(("scope", "kind"), [("reviewer", Denied), ("", Unauthenticated)])
async def test_channelz_is_denied_to_others(world: Any, factory: Any, scope: str, kind: type) -> None:
    operator = world.operator("eve", scope) if scope else dataclasses.replace(world.operator(), token="")
    channel = await dialed(world, factory, operator)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channelz_pb2_grpc.ChannelzStub(channel).GetServers(
            channelz_pb2.GetServersRequest(), timeout=CALL_MAX_S
        )
    assert isinstance(from_rpc_error(caught.value), kind)


async def test_channelz_is_denied_to_parts(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory, world.part("gateway"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channelz_pb2_grpc.ChannelzStub(channel).GetServers(
            channelz_pb2.GetServersRequest(), timeout=CALL_MAX_S
        )
    assert isinstance(from_rpc_error(caught.value), Denied)
