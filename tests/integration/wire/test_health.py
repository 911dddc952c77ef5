"""The health service answers the standard client: Check, Watch and List."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from wire.channels import open_control_channel
from wire.health import HealthServicer, add_health

CALL_MAX_S = 10.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def served(world: Any, trusted: Any) -> tuple[HealthServicer, health_pb2_grpc.HealthStub]:
    health = HealthServicer()
    target = await world.serve(lambda server: add_health(health, server), tls=False, trusted_caller=trusted)
    channel = await world.stack.enter_async_context(open_control_channel(target))
    return health, health_pb2_grpc.HealthStub(channel)


async def test_check_says_what_was_set(world: Any, trusted: Any) -> None:
    health, stub = await served(world, trusted)
    request = health_pb2.HealthCheckRequest()
    assert (await stub.Check(request, timeout=CALL_MAX_S)).status == NOT_SERVING
    health.set("", True)
    assert (await stub.Check(request, timeout=CALL_MAX_S)).status == SERVING


async def test_an_unknown_service_is_not_found(world: Any, trusted: Any) -> None:
    _, stub = await served(world, trusted)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="x"), timeout=CALL_MAX_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_tells_every_change_once(world: Any, trusted: Any) -> None:
    health, stub = await served(world, trusted)
    call = stub.Watch(health_pb2.HealthCheckRequest(service="a.B"), timeout=CALL_MAX_S)
    assert (await call.read()).status == UNKNOWN
    health.set("a.B", True)
    assert (await call.read()).status == SERVING
    health.set("a.B", True)
    health.set("other", True)
    health.set_all(False)
    assert (await call.read()).status == NOT_SERVING
    call.cancel()


async def test_list_names_every_service(world: Any, trusted: Any) -> None:
    health, stub = await served(world, trusted)
    health.set("a.B", True)
    answer = await stub.List(health_pb2.HealthListRequest(), timeout=CALL_MAX_S)
    assert {name: one.status for name, one in answer.statuses.items()} == {"": NOT_SERVING, "a.B": SERVING}
