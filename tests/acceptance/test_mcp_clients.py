"""Clients that nobody here wrote list and call a whole crew's tools by one URL, in both eras of MCP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client as McpClient
from mcp import MCPError
from running import ROOT, Client, Running, proxied, request_id
from test_clients import INSTALL_WITHIN_S, program, run

from hyperfactory.v1 import factory_service_pb2, factory_service_pb2_grpc

pytestmark = pytest.mark.timeout(240)

NODE = Path(__file__).parent / "node" / "mcp"
INSTALLED = ROOT / "build" / "node-mcp"
START_WITHIN_S = 20.0
LIST_MAX_S = 1.0
CODER_TOOLS = {"list_files", "read_file", "write_file"}
MODES = ("auto", "legacy")


@pytest.fixture
async def url(running: Running) -> AsyncIterator[str]:
    async with proxied(running) as found:
        yield found


@pytest.fixture(scope="session")
def node_client() -> Path:
    """The official Node client, installed once for this checkout as its lock file says."""
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(NODE / name, INSTALLED / name)
    return INSTALLED / "client.mjs"


async def installed(client: Path) -> None:
    if not (client.parent / "node_modules" / "@modelcontextprotocol" / "client").is_dir():
        options = ("--no-audit", "--no-fund", "--silent")
        await run(program("npm"), "ci", *options, cwd=client.parent, within_s=INSTALL_WITHIN_S)


def expected(tools: set[str]) -> set[str]:
    """Names of those of our tools that every coder has."""
    return {f"coder-{number}__{tool}" for number in (1, 2) for tool in tools}


async def all_there(mcp: McpClient, wanted: set[str]) -> list[str]:
    """The names, once the agents have said what they offer."""
    async with asyncio.timeout(START_WITHIN_S):
        while True:
            names = [tool.name for tool in (await mcp.list_tools(cache_mode="refresh")).tools]
            if wanted <= set(names):
                return names
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", MODES)
async def test_the_python_sdk_uses_a_whole_crew_by_one_url(url: str, crew: Any, mode: str):
    async with McpClient(f"{url}/crews/{crew.id}/mcp", mode=mode) as mcp:
        names = await all_there(mcp, expected(CODER_TOOLS))
        assert names == sorted(names)
        text = {"path": "hello.txt", "content": "from the SDK"}
        assert not (await mcp.call_tool("coder-1__write_file", text)).is_error
        found = await mcp.call_tool("coder-1__read_file", {"path": "hello.txt"})
        assert "from the SDK" in str(found.content)
        assert (await mcp.call_tool("coder-2__read_file", {"path": "hello.txt"})).is_error
        assert (await mcp.call_tool("coder-1__read_file", {"path": 7})).is_error
        with pytest.raises(MCPError) as caught:
            await mcp.call_tool("coder-1__nothing", {})
        assert caught.value.error.code == -32602
    coder = next(agent for agent in crew.agents if agent.name == "coder-1")
    async with McpClient(f"{url}/agents/{coder.id}/mcp", mode=mode) as mcp:
        own = {tool.name for tool in (await mcp.list_tools()).tools}
        assert own >= CODER_TOOLS
        assert "from the SDK" in str((await mcp.call_tool("read_file", {"path": "hello.txt"})).content)


@pytest.mark.parametrize("mode", MODES)
async def test_the_node_sdk_uses_a_whole_crew_by_one_url(url: str, crew: Any, node_client: Path, mode: str):
    await installed(node_client)
    async with McpClient(f"{url}/crews/{crew.id}/mcp") as mcp:
        await all_there(mcp, expected(CODER_TOOLS))
    arguments = json.dumps({"path": "node.txt", "content": "from Node"})
    told = await run(
        program("node"),
        str(node_client),
        f"{url}/crews/{crew.id}/mcp",
        mode,
        "coder-2__write_file",
        arguments,
    )
    said = json.loads(told)
    assert expected(CODER_TOOLS) <= set(said["tools"])
    assert not said["called"].get("isError")
    assert said["refused"] == "-32602"


async def test_a_new_member_is_heard_of_and_stopped_ones_delay_nobody(
    url: str, running: Running, client: Client, crew: Any
):
    stopped = [agent.instance.host_pid for agent in crew.agents if agent.name != "coder-1"]
    assert all(stopped)
    async with McpClient(f"{url}/crews/{crew.id}/mcp") as mcp:
        await all_there(mcp, expected(CODER_TOOLS))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            names = {tool.name for tool in (await mcp.list_tools(cache_mode="refresh")).tools}
            assert time.monotonic() - began < LIST_MAX_S
            assert expected(CODER_TOOLS) <= names
            assert not (await mcp.call_tool("coder-1__list_files", {})).is_error
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        async with mcp.listen(tools_list_changed=True) as events, asyncio.timeout(START_WITHIN_S):
            factory = factory_service_pb2_grpc.FactoryServiceStub(client.channel)
            request = factory_service_pb2.SpawnAgentRequest(
                request_id=request_id(), profile="coder", name="late", crew=crew.id
            )
            await factory.SpawnAgent(request, timeout=START_WITHIN_S, metadata=client.metadata)
            await anext(aiter(events))
            assert "late__read_file" in await all_there(mcp, {"late__read_file"})


async def test_the_command_lists_and_calls(running: Running, crew: Any):
    base = (sys.executable, "-m", "factory_cli", "--client", str(running.home / "client.json"))
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    async with asyncio.timeout(START_WITHIN_S):
        while True:
            listed = json.loads(await run(*base, "--json", "tool", "list", crew.name, **environment))["tools"]
            if expected(CODER_TOOLS) <= {tool["name"] for tool in listed}:
                break
    assert not any(tool["stale"] for tool in listed)
    arguments = json.dumps({"path": "cli.txt", "content": "by command"})
    await run(*base, "tool", "call", crew.id, "coder-1__write_file", arguments, **environment)
    said = await run(
        *base, "tool", "call", crew.id, "coder-1__read_file", '{"path": "cli.txt"}', **environment
    )
    assert "by command" in said
    watched = await run(*base, "tool", "watch", crew.id, "--idle", "0.5", **environment)
    assert "+ coder-1__read_file" in watched
