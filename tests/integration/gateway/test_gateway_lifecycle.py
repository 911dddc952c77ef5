"""Connections follow the lifecycle: parked until READY, woken, fenced off from a dead instance, drained."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from hyperfactory.v1 import types_pb2
from tests.integration.gateway.parts import Stage, describe, describe_retrying, stream

WAITING = [
    types_pb2.AGENT_STATE_PROVISIONING,
    types_pb2.AGENT_STATE_WARMING,
    types_pb2.AGENT_STATE_UNHEALTHY,
]


@pytest.mark.parametrize("state", WAITING)
async def test_call_waits_for_an_agent_that_is_on_its_way(stage: Stage, state: int) -> None:
    agent = stage.agent("coder-1", state=state)
    stage.registry.put(agent)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(describe(stage.stub("coder-1")))
        await stage.gateway.figure_is("parked_connections", 1)
        await stage.serve_agent(agent)
        agent.state = types_pb2.AGENT_STATE_READY
        stage.registry.put(agent)
    assert call.result().generation == 1
    assert await stage.gateway.figure("parked_connections") == 0


async def test_call_wakes_a_hibernating_agent_once(stage: Stage) -> None:
    agent = stage.agent("coder-1", state=types_pb2.AGENT_STATE_HIBERNATING)
    stage.registry.put(agent)
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(describe(stage.stub("coder-1"))) for _ in range(3)]
        await stage.gateway.figure_is("parked_connections", 3)
        await stage.serve_agent(agent)
        agent.state, agent.generation = types_pb2.AGENT_STATE_READY, 2
        stage.registry.put(agent)
    assert [call.result().agent for call in calls] == [agent.id] * 3
    assert stage.registry.woken == [agent.id]


async def test_call_waits_while_the_socket_of_a_ready_agent_does_not_answer(stage: Stage) -> None:
    agent = stage.agent("coder-1")
    agent.endpoint.direct = f"unix://{stage.home}/absent.sock"
    stage.registry.put(agent)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(describe(stage.stub("coder-1")))
        await stage.gateway.figure_is("parked_connections", 1)
        agent.generation = 2
        await stage.serve_agent(agent)
        stage.registry.put(agent)
    assert call.result().generation == 2


async def test_new_generation_cuts_the_streams_of_the_old(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1")
    stub = stage.stub("coder-1")
    async with stream(stub) as ping:
        assert (await ping()).attached
        agent.generation = 2
        await stage.serve_agent(agent)
        stage.registry.put(agent)
        await stage.gateway.figure_is("fenced_connections_total", 1)
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            async with asyncio.timeout(5):
                while True:
                    await ping()
    assert (await describe_retrying(stub)).generation == 2


async def test_unhealthy_agent_is_cut_off_at_once(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1")
    async with stream(stage.stub("coder-1")) as ping:
        await ping()
        agent.state = types_pb2.AGENT_STATE_UNHEALTHY
        stage.registry.put(agent)
        await stage.gateway.figure_is("relayed_connections", 0)


async def test_draining_agent_finishes_its_streams_and_gets_no_new_ones(stage: Stage) -> None:
    agent, service = await stage.ready_agent("coder-1")
    async with stream(stage.stub("coder-1")) as ping:
        await ping()
        agent.state = types_pb2.AGENT_STATE_DRAINING
        stage.registry.put(agent)
        other, _ = await stage.ready_agent("other")
        await describe(stage.stub(other.name))  # the registry's news have passed the gateway by now
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await describe(stage.stub("coder-1"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.callers == []
        assert (await ping()).attached


async def test_busy_and_ready_are_one_to_a_stream(stage: Stage) -> None:
    agent, _ = await stage.ready_agent("coder-1")
    async with stream(stage.stub("coder-1")) as ping:
        await ping()
        for state in (types_pb2.AGENT_STATE_BUSY, types_pb2.AGENT_STATE_READY):
            agent.state = state
            stage.registry.put(agent)
        other, _ = await stage.ready_agent("other")
        await describe(stage.stub(other.name))  # the registry's news have passed the gateway by now
        assert (await ping()).attached
    assert await stage.gateway.figure("fenced_connections_total") == 0


async def test_client_that_says_nothing_is_cut_off_and_a_silent_stream_is_not(stage: Stage) -> None:
    await stage.restart_gateway("--hello-s", "0.3")
    await stage.ready_agent("coder-1")
    async with stream(stage.stub("coder-1")) as ping:
        await ping()
        host, _, port = stage.gateway.address.partition(":")
        for _ in range(2):  # as the first ends, the stream has been silent for longer than that
            reader, writer = await asyncio.open_connection(host, int(port))
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()
        assert (await ping()).attached


async def test_call_that_waited_in_vain_is_unavailable(stage: Stage) -> None:
    await stage.restart_gateway("--park-s", "0.3")
    stage.registry.put(stage.agent("coder-1", state=types_pb2.AGENT_STATE_WARMING))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await describe(stage.stub("coder-1"))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await stage.gateway.figure("park_timeouts_total") >= 1
