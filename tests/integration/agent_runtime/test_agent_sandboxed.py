"""The demo mission in real sandboxes: forked from the zygote, wired by the driver, no network but sockets."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from factory_server.core.sandbox import Driver, SandboxSpec, http_socket
from factory_server.drivers.namespaces.driver import NamespacesDriver
from hyperfactory.v1 import agent_service_pb2_grpc as rpc
from tests.integration.agent_runtime.parts import World, call_tool, plain, run_task
from tests.support.mcp import Mcp
from wire.channels import open_control_channel

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the full tier needs root")

NAMES = ("coder-1", "coder-2", "reviewer", "planner")


@pytest.fixture
async def driver() -> AsyncIterator[NamespacesDriver]:
    with tempfile.TemporaryDirectory(prefix="hfs") as state:
        found = NamespacesDriver(Path(state), factory="runtime-test")
        await found.start()
        yield found
        await found.terminate()


def entry(name: str) -> dict[str, Any]:
    group = name.split("-")[0]
    scope = "reviewer" if group == "reviewer" else "coder"
    return {"entry_point": f"agent_runtime.profiles.{group}:{group.title()}", "scope": scope}


async def raise_crew(world: World, driver: NamespacesDriver) -> dict[str, Any]:
    """Sandboxed agents by name, each wired to all others and to the bus."""
    assert world.valkey is not None
    for name in NAMES:
        world.enlist(name, group=name.split("-")[0])
    stubs, links = {}, {"bus.sock": str(world.valkey.socket)}
    for name in NAMES:
        sandbox = await driver.create(SandboxSpec(f"{name}-g1"), deadline_s=20)
        channel = await world.stack.enter_async_context(open_control_channel(sandbox.control))
        stubs[name] = rpc.AgentServiceStub(channel)
        await stubs[name].Assume(
            await world.request(name, group=name.split("-")[0], spec=entry(name)), timeout=10
        )
        links[f"{name}.sock"] = (await driver.publish(f"{name}-g1")).removeprefix("unix://")
    for name in NAMES:
        await driver.wire(f"{name}-g1", links)
    return stubs


async def test_the_mission_is_done_in_sandboxes(bussed: World, driver: NamespacesDriver) -> None:
    stubs = await raise_crew(bussed, driver)
    began = asyncio.get_running_loop().time()
    _, result = await run_task(stubs["planner"], "m1", {"mission": "primes", "numbers": 100_000})
    output = plain(result.output)
    assert (output.get("primes"), output.get("approved")) == (9592, True), (result.status, output)
    assert asyncio.get_running_loop().time() - began < 5.0


async def test_tools_work_inside_the_sandbox(bussed: World, driver: NamespacesDriver) -> None:
    stubs = await raise_crew(bussed, driver)
    ran = await call_tool(
        stubs["coder-1"], "run_python", {"code": "import os; print(os.getcwd(), os.getuid())"}
    )
    assert ran.text.startswith("/workspace ")
    slow = await call_tool(stubs["coder-1"], "run_python", {"code": "bytearray(10**9)"})
    assert "MemoryError" in slow.text
    await check_mcp(driver)


async def check_mcp(driver: Driver) -> None:
    """The factory reaches an agent's MCP endpoint, and the agent has nothing left that leads to it."""
    mcp = Mcp(Path(http_socket(await driver.publish("coder-1-g1"))))
    found = await mcp.call("run_python", code="import os; print(os.path.lexists('/run/hf/own/http.sock'))")
    assert found["content"] == [{"type": "text", "text": "False"}]
