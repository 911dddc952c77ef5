"""MCP servers in a running agent: behind READY, scoped, reported, stopped and started with the agent's life."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import types_pb2
from tests.integration.agent_runtime.parts import Instance, World, call_tool, reason_of, until

PROGRAM = str(Path(__file__).parents[2] / "support" / "stdio_server.py")
SMALL = "McpServer/small"


def server(name: str = "small", *ways: str, **more: Any) -> types_pb2.McpServer:
    return types_pb2.McpServer(name=name, command=sys.executable, args=[PROGRAM, *ways], **more)


def spec(*servers: types_pb2.McpServer, **more: Any) -> dict[str, Any]:
    return {"mcp_servers": servers, **more}


def reason(instance: Instance, condition: str = SMALL) -> str:
    offered = instance.runtime.agent().parts.context.capabilities
    return next(c.reason for c in offered.conditions() if c.type == condition)


def pids(instance: Instance) -> dict[str, int]:
    return instance.runtime.agent().parts.servers.pids()


@pytest.fixture
async def agent(world: World) -> AsyncIterator[Instance]:
    """An agent whose server serves."""
    instance = await world.agent(spec=spec(server()))
    await until(lambda: reason(instance) == "Serving")
    yield instance


async def test_a_silent_server_does_not_delay_the_agent(world: World) -> None:
    async with asyncio.timeout(5):
        instance = await world.agent(spec=spec(server("small", "silent")))
    assert await instance.serving()
    assert reason(instance) == "Starting"


async def test_its_tools_are_listed_and_called_beside_the_agents_own(agent: Instance) -> None:
    names = [tool.name for tool in (await agent.stub.ListTools(pb.ListToolsRequest(), timeout=5)).tools]
    assert {"read_file", "small__echo", "small__slow"} <= set(names)
    assert (await call_tool(agent.stub, "small__echo", {"text": "hi"})).text == "hi"


async def test_a_reviewer_sees_and_calls_only_what_changes_nothing(world: World) -> None:
    instance = await world.agent(spec=spec(server(read_only_tools=["env"]), scope="reviewer"))
    await until(lambda: reason(instance) == "Serving")
    listed = await instance.stub.ListTools(pb.ListToolsRequest(), timeout=5)
    assert {t.name for t in listed.tools if t.name.startswith("small")} == {"small__echo", "small__env"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call_tool(instance.stub, "small__grow", {})
    assert reason_of(refused.value) == "SCOPE_MISSING"


async def test_secrets_reach_the_server_and_not_the_agents_tools(world: World) -> None:
    wanted = spec(server(secret_env={"TOKEN": "key"}))
    instance = await world.agent(spec=wanted, secrets={"key": "s3cr3t"})
    await until(lambda: reason(instance) == "Serving")
    assert '"s3cr3t"' in (await call_tool(instance.stub, "small__env", {})).text
    own = await call_tool(instance.stub, "run_python", {"code": "import os; print(dict(os.environ))"})
    assert "s3cr3t" not in own.text


async def test_two_servers_of_one_program_do_not_meet(world: World) -> None:
    instance = await world.agent(spec=spec(server("one"), server("two", "crash")))
    await until(lambda: reason(instance, "McpServer/one") == "Serving")
    await until(lambda: reason(instance, "McpServer/two") == "Crashed")
    assert (await call_tool(instance.stub, "one__echo", {"text": "alone"})).text == "alone"


async def test_an_abandoned_call_leaves_the_agent_free(agent: Instance) -> None:
    slow = agent.stub.CallTool(pb.CallToolRequest(name="small__slow"), timeout=20)
    assert (await slow.read()).progress.message == "step 0"
    slow.cancel()
    await until(lambda: not len(agent.runtime.agent().tool_calls))


async def test_a_drain_stops_it(agent: Instance) -> None:
    await agent.stub.Drain(pb.DrainRequest(), timeout=10)
    assert (pids(agent), reason(agent)) == ({}, "Stopped")


async def test_a_suspended_agent_has_none_and_one_that_goes_on_has_them_again(agent: Instance) -> None:
    first = pids(agent)["small"]
    await agent.stub.Suspend(pb.SuspendRequest(), timeout=10)
    assert not Path(f"/proc/{first}").exists()
    await agent.stub.Resume(pb.ResumeRequest(), timeout=10)
    await until(lambda: reason(agent) == "Serving")
    assert (await call_tool(agent.stub, "small__echo", {"text": "awake"})).text == "awake"


async def test_nothing_of_it_outlives_the_instance(world: World) -> None:
    instance = await world.agent(spec=spec(server("small", "stubborn")))
    await until(lambda: reason(instance) == "Serving")
    pid = pids(instance)["small"]
    await instance.runtime.stop()
    assert not Path(f"/proc/{pid}").exists()
