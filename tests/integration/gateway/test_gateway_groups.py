"""A group's name leads each call to another of its members, through a Traefik that ends TLS for it."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from hyperfactory.v1 import agent_service_pb2, types_pb2
from tests.integration.gateway.parts import CREW, Stage, describe, describe_retrying, stream
from wire.identity import agent_authority, certificate_der, part_spiffe

NAMES = ("coder-1", "coder-2", "coder-3")


async def test_calls_on_one_channel_go_round_the_members(stage: Stage) -> None:
    services = [(await stage.ready_agent(name, group="coder", replicas=3))[1] for name in NAMES]
    stub = stage.stub("coder")
    await describe_retrying(stub)
    await _all_members_routed(stage)
    answered = Counter([(await describe(stub)).agent for _ in range(30)])
    assert set(answered) == {f"id-{name}" for name in NAMES}
    assert max(answered.values()) - min(answered.values()) <= 2  # ten rounds, begun and ended anywhere in one
    # The agent sees the gateway, which passes the caller's certificate on.
    assert services[0].callers[-1]["peer_spiffe_id"] == [part_spiffe("gateway").encode()]
    passed = urllib.parse.unquote(services[0].metadata[-1]["x-forwarded-tls-client-cert"])
    pem = b"-----BEGIN CERTIFICATE-----\n" + passed.split(",")[0].encode() + b"\n-----END CERTIFICATE-----"
    assert certificate_der(pem) == certificate_der(stage.operator.certificate_pem)


async def test_members_keep_their_own_names(stage: Stage) -> None:
    for name in NAMES:
        await stage.ready_agent(name, group="coder", replicas=3)
    assert (await describe(stage.stub("coder-2"))).agent == "id-coder-2"


async def test_caller_cannot_pass_another_certificate_for_his_own(stage: Stage) -> None:
    _, service = await stage.ready_agent("coder-1", group="coder", replicas=2)
    stub = stage.stub("coder")
    await describe_retrying(stub)
    header = "x-forwarded-tls-client-cert"
    await stub.Describe(agent_service_pb2.DescribeRequest(), timeout=5, metadata=((header, "forged"),))
    assert "forged" not in service.metadata[-1][header]
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Describe(
            agent_service_pb2.DescribeRequest(), timeout=5, metadata=((header.replace("-", "_"), "forged"),)
        )


async def test_lost_member_gets_no_calls_and_nobody_notices(stage: Stage) -> None:
    agents = [(await stage.ready_agent(name, group="coder", replicas=3))[0] for name in NAMES]
    stub = stage.stub("coder")
    await describe_retrying(stub)
    await _all_members_routed(stage)
    agents[0].state = types_pb2.AGENT_STATE_UNHEALTHY
    stage.registry.put(agents[0])
    await stage.gateway.figure_is("routes", 2)
    answered = Counter([(await describe(stub)).agent for _ in range(20)])
    assert set(answered) == {"id-coder-2", "id-coder-3"}


async def test_stream_of_one_member_survives_the_loss_of_another(stage: Stage) -> None:
    pairs = [await stage.ready_agent(name, group="coder", replicas=3) for name in NAMES]
    stub = stage.stub("coder")
    await describe_retrying(stub)
    await _all_members_routed(stage)
    async with contextlib.AsyncExitStack() as stack:
        pings = [await stack.enter_async_context(stream(stub)) for _ in range(6)]
        for ping in pings:
            await ping()
        lost, service = pairs[1]
        stage.registry.remove(lost)
        await stage.gateway.figure_is("agents", 2)
        answers = [await _alive(ping) for ping in pings]
        assert service.streams > 0
        assert sum(answers) == len(pings) - service.streams


async def _alive(ping: Callable[[], Awaitable[Any]]) -> bool:
    try:
        return bool((await ping()).attached)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, AttributeError):
        return False


async def test_renewed_identity_of_the_gateway_is_taken_up_without_a_lost_stream(stage: Stage) -> None:
    _, service = await stage.ready_agent("coder-1", group="coder", replicas=2)
    stub = stage.stub("coder")
    async with stream(stub) as ping:
        await ping()
        await describe(stub)
        before = service.callers[-1]["x509_pem_cert"]
        stage.renew_identity()
        async with asyncio.timeout(15):
            while service.callers[-1]["x509_pem_cert"] == before:
                await describe(stub)
        assert (await ping()).attached


async def test_group_waits_for_its_first_member(stage: Stage) -> None:
    agent = stage.agent("coder-1", state=types_pb2.AGENT_STATE_WARMING, group="coder", replicas=2)
    stage.registry.put(agent)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(describe(stage.stub("coder")))
        await stage.gateway.figure_is("parked_connections", 1)
        await stage.serve_agent(agent)
        agent.state = types_pb2.AGENT_STATE_READY
        stage.registry.put(agent)
    assert call.result().agent == agent.id


async def test_call_on_an_open_connection_to_a_group_without_members_is_unavailable(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1", group="coder", replicas=2)
    stub = stage.stub("coder")
    async with stream(stub) as ping:
        await ping()
        agent.state = types_pb2.AGENT_STATE_DRAINING
        stage.registry.put(agent)
        async with asyncio.timeout(10):
            while (await stage.gateway.routes())["groups"]:
                await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await describe(stub)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await ping()).attached


async def test_group_is_gone_with_its_last_member(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1", group="coder", replicas=2)
    await describe_retrying(stage.stub("coder"))
    stage.registry.remove(agent)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await describe(stage.stub("coder"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    async with asyncio.timeout(10):
        while (await stage.gateway.routes())["groups"]:
            await asyncio.sleep(0.01)
    assert b"coder" not in (stage.home / "gw" / "document.json").read_bytes()


async def _all_members_routed(stage: Stage) -> None:
    """Wait until Traefik has a document with every member."""
    wanted = {agent_authority("coder", CREW): [agent_authority(name, CREW) for name in NAMES]}
    async with asyncio.timeout(10):
        while (await stage.gateway.routes())["groups"] != wanted:
            await asyncio.sleep(0.01)
