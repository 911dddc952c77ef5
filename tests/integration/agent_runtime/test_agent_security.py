"""The service endpoint: who gets in, with which scope, and what a mate may not do."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from hyperfactory.v1 import agent_service_pb2 as pb
from tests.integration.agent_runtime.parts import CREW, World, call_tool, reason_of, run_task
from wire.channels import open_control_channel
from wire.identity import Identity, agent_authority


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), reason_of(refused.value)


async def test_a_plaintext_client_gets_nothing(world: World) -> None:
    await world.agent()
    target = f"unix:{world.peers / 'solo.sock'}"
    channel = await world.stack.enter_async_context(open_control_channel(target))
    call = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_foreign_authoritys_certificate_gets_nothing(world: World, tmp_path: Any) -> None:
    from factory_server.identity.ca import CertificateAuthority

    await world.agent()
    foreign = CertificateAuthority.open(tmp_path / "ca").issue_agent(CREW, "mate", 1)
    ours = world.agent_identity("mate")
    stub = await world.dial("solo", Identity(foreign.certificate_pem, foreign.key_pem, ours.ca_pem))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ListTools(pb.ListToolsRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_agent_proves_its_own_name(world: World) -> None:
    await world.agent()
    authority = agent_authority("other", CREW)
    stub = await world.dial("solo", world.agent_identity("mate"), authority=authority)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ListTools(pb.ListToolsRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_agent_of_another_crew_is_denied(world: World) -> None:
    await world.agent()
    stub = await world.dial("solo", world.agent_identity("mate", crew="c2"))
    code, reason = await refusal(stub.ListTools(pb.ListToolsRequest(), timeout=5))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED")


async def test_a_mate_without_a_token_is_not_known(world: World) -> None:
    await world.agent()
    mate = world.agent_identity("mate")
    stub = await world.dial("solo", Identity(mate.certificate_pem, mate.key_pem, mate.ca_pem))
    code, reason = await refusal(stub.ListTools(pb.ListToolsRequest(), timeout=5))
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")


async def test_anothers_token_is_not_accepted(world: World) -> None:
    await world.agent()
    mate, other = world.agent_identity("mate"), world.agent_identity("other")
    stolen = Identity(mate.certificate_pem, mate.key_pem, mate.ca_pem, other.token)
    stub = await world.dial("solo", stolen)
    code, reason = await refusal(stub.ListTools(pb.ListToolsRequest(), timeout=5))
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


@pytest.mark.parametrize("method", ["Assume", "Suspend", "Resume", "Drain"])
async def test_mates_may_not_do_what_is_the_factorys(world: World, method: str) -> None:
    await world.agent()
    stub = await world.dial("solo", world.agent_identity("mate", scope="admin"))
    request = getattr(pb, f"{method}Request")()
    code, reason = await refusal(getattr(stub, method)(request, timeout=5))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED")


async def test_a_mate_may_not_attach_a_session(world: World) -> None:
    await world.agent()
    stub = await world.dial("solo", world.agent_identity("mate", scope="admin"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Deliver().read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("part", ["gateway", "watchdog", "factory"])
async def test_the_factorys_parts_see_health_by_certificate_alone(world: World, part: str) -> None:
    await world.agent()
    health = await world.dial_health("solo", world.part_identity(part))
    found = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert found.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_reviewer_sees_and_calls_only_what_reads(world: World) -> None:
    await world.agent()
    stub = await world.dial("solo", world.agent_identity("critic", scope="reviewer"))
    tools = (await stub.ListTools(pb.ListToolsRequest(), timeout=5)).tools
    assert [tool.name for tool in tools] == ["list_files", "memory_get", "memory_search", "read_file"]
    denied = call_tool(stub, "write_file", {"path": "x", "content": "y"})
    assert await refusal(denied) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert not (await call_tool(stub, "list_files", {})).is_error
    assert await refusal(run_task(stub, "t", {})) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


async def test_a_reviewing_agents_own_scope_narrows_a_coder_too(world: World) -> None:
    await world.agent(spec={"scope": "reviewer"})
    stub = await world.dial("solo", world.agent_identity("mate", scope="coder"))
    denied = call_tool(stub, "run_python", {"code": "print(1)"})
    assert await refusal(denied) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


async def test_operators_reach_any_agent_with_the_right_scope(world: World) -> None:
    await world.agent()
    stub = await world.dial("solo", world.operator_identity("admin"))
    assert len((await stub.ListTools(pb.ListToolsRequest(), timeout=5)).tools) == 8


async def test_constraints_of_the_contract_are_checked(world: World) -> None:
    instance = await world.agent()
    request = pb.GetMemoryRequest(key="k" * 257)
    code, reason = await refusal(instance.stub.GetMemory(request, timeout=5))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
