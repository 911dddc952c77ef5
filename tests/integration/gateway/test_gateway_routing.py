"""Names lead to the factory and to agents through a real Traefik, with mTLS from end to end."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from factory_server.identity.ca import CertificateAuthority
from hyperfactory.v1 import factory_service_pb2, factory_service_pb2_grpc
from tests.integration.gateway.parts import CREW, Stage, describe, describe_retrying
from wire.errors import NotFound
from wire.identity import FACTORY_AUTHORITY, agent_authority, operator_spiffe
from wire.status import from_rpc_error


@pytest.mark.parametrize("authority", [FACTORY_AUTHORITY, "localhost"])
async def test_factory_answers_by_its_names(stage: Stage, authority: str) -> None:
    factory = factory_service_pb2_grpc.FactoryServiceStub(stage.channel(authority))
    info = await factory.GetFactoryInfo(factory_service_pb2.GetFactoryInfoRequest(), timeout=10)
    assert info.version == "test"


async def test_agent_sees_the_callers_own_certificate(stage: Stage) -> None:
    _, service = await stage.ready_agent("coder-1")
    assert (await describe(stage.stub("coder-1"))).agent == "id-coder-1"
    assert service.callers[0]["peer_spiffe_id"] == [operator_spiffe("eve").encode()]


async def test_each_agent_answers_to_its_own_name(stage: Stage) -> None:
    for name in ("coder-1", "coder-2", "reviewer"):
        await stage.ready_agent(name)
    for name in ("reviewer", "coder-2", "coder-1"):
        assert (await describe(stage.stub(name))).agent == f"id-{name}"


async def test_foreign_certificate_is_refused(stage: Stage) -> None:
    await stage.ready_agent("coder-1")
    foreign = CertificateAuthority.open(stage.home / "foreign").issue(operator_spiffe("eve"), [], ttl_s=600)
    shown = type(foreign)(foreign.certificate_pem, foreign.key_pem, stage.operator.ca_pem)
    for name in ("coder-1", "nobody"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await describe(stage.stub(name, shown))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_unknown_agent_is_a_grpc_not_found_with_details(stage: Stage) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await describe(stage.stub("nobody"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    error = from_rpc_error(refused.value)
    assert isinstance(error, NotFound)
    assert error.reason == "RESOURCE_NOT_FOUND"
    assert (error.resource_type, error.resource_name) == ("agent", agent_authority("nobody", CREW))


async def test_channel_that_was_told_not_found_reaches_the_agent_once_it_exists(stage: Stage) -> None:
    stub = stage.stub("late")
    with pytest.raises(grpc.aio.AioRpcError):
        await describe(stub)
    await stage.ready_agent("late")
    assert (await describe_retrying(stub)).agent == "id-late"


async def test_name_is_gone_after_the_agent_is(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1")
    await describe(stage.stub("coder-1"))
    stage.registry.remove(agent)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await describe(stage.stub("coder-1"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await stage.gateway.routes())["agents"] == []
