"""MCP servers from npm and PyPI, unchanged, as capabilities of agents in real sandboxes of both drivers."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from factory_server.core.errors import Invalid
from factory_server.core.sandbox import Driver, SandboxSpec
from factory_server.drivers.docker.driver import DockerDriver
from factory_server.drivers.namespaces.driver import NamespacesDriver
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import agent_service_pb2_grpc as rpc
from hyperfactory.v1 import types_pb2
from tests.integration.agent_runtime.parts import World, call_tool, plain
from tests.support.bases import bases
from wire.channels import open_control_channel

__all__ = ["bases"]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the full tier needs root"),
    pytest.mark.timeout(300),  # the base may have to be built first
]
SERVES_WITHIN_S = 30.0
READY_WITHIN_S = 3.0
PIDS_MAX = 64
KILL = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        line = open(f"/proc/{pid}/cmdline", "rb").read()
    except OSError:
        continue
    if line.startswith(b"node\\0") and b"server-memory" in line:
        os.kill(int(pid), signal.SIGKILL)
        print(pid)
"""
SERVERS = [
    types_pb2.McpServer(name="files", command="mcp-server-filesystem", args=["/workspace"]),
    types_pb2.McpServer(
        name="notes", command="mcp-server-memory", env={"MEMORY_FILE_PATH": "/workspace/notes.jsonl"}
    ),
    types_pb2.McpServer(
        name="clock", command="mcp-server-time", args=["--local-timezone", "UTC"], tools=["convert_time"]
    ),
    types_pb2.McpServer(name="lost", command="no-such-server"),
]


@pytest.fixture(params=["namespaces", "rootless", "docker"])
async def driver(request: pytest.FixtureRequest, bases: Path) -> AsyncIterator[Driver]:
    with tempfile.TemporaryDirectory(prefix="hfs") as state:
        found: Any
        if request.param == "docker":
            engine = request.getfixturevalue("plain_engine")
            found = DockerDriver(Path(state), factory="servers-test", engine=engine, bases_dir=bases)
        else:
            rootless = True if request.param == "rootless" else None
            found = NamespacesDriver(Path(state), factory="servers-test", bases_dir=bases, rootless=rootless)
        await found.start()
        yield found
        await found.terminate()


class Watched:
    """An agent and what it last reported."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.report = pb.AgentReport()
        self.seen: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    async def attend(self) -> None:
        session = self.stub.Deliver()
        async for said in session:
            if said.HasField("report"):
                self.report = said.report
                self.seen += [(c.type, c.reason) for c in said.report.conditions]
                self._news.set()

    def reason(self, server: str) -> str:
        return next((c.reason for c in self.report.conditions if c.type == f"McpServer/{server}"), "")

    async def until(self, **reasons: str) -> None:
        async with asyncio.timeout(SERVES_WITHIN_S):
            while any(self.reason(server) != reason for server, reason in reasons.items()):
                self._news.clear()
                await self._news.wait()

    def tools(self, server: str) -> dict[str, Any]:
        return {t.name: t for t in self.report.tools if t.name.startswith(f"{server}__")}

    async def call(self, tool: str, **arguments: Any) -> Any:
        result = await call_tool(self.stub, tool, arguments)
        assert not result.is_error, result.text
        return result


async def test_servers_from_npm_and_pypi_serve_die_and_come_back(world: World, driver: Driver) -> None:
    sandbox = await driver.create(SandboxSpec("office-1", base="office"), deadline_s=30)
    channel = await world.stack.enter_async_context(open_control_channel(sandbox.control))
    agent = Watched(rpc.AgentServiceStub(channel))
    request = await world.request("office", spec={"base": "office", "mcp_servers": SERVERS})
    began = asyncio.get_running_loop().time()
    await agent.stub.Assume(request, timeout=20)
    assert asyncio.get_running_loop().time() - began < READY_WITHIN_S, "servers do not delay the agent"
    async with asyncio.TaskGroup() as group:
        attending = group.create_task(agent.attend())
        await agent.until(files="Serving", notes="Serving", clock="Serving", lost="CommandNotFound")
        await _use(agent)
        await _lose_one(agent)
        assert (await driver.stats("office-1")).pids < PIDS_MAX
        attending.cancel()


async def _use(agent: Watched) -> None:
    """Real work by each of the three."""
    await agent.call("write_file", path="plan.txt", content="1. begin")
    assert "[FILE] plan.txt" in (await agent.call("files__list_directory", path="/workspace")).text
    assert (await agent.call("files__read_text_file", path="/workspace/plan.txt")).text == "1. begin"
    outside = await call_tool(agent.stub, "files__list_directory", {"path": "/etc"})
    assert outside.is_error
    times = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    assert "T21:00:00+09:00" in (await agent.call("clock__convert_time", **times)).text
    entity = {"name": "Ada", "entityType": "person", "observations": ["wrote the first program"]}
    await agent.call("notes__create_entities", entities=[entity])
    found = await agent.call("notes__search_nodes", query="first program")
    assert plain(found.structured)["entities"] == [entity]
    assert agent.tools("files")["files__list_directory"].read_only
    assert not agent.tools("files")["files__write_file"].read_only
    assert list(agent.tools("clock")) == ["clock__convert_time"]


async def _lose_one(agent: Watched) -> None:
    """kill -9 of one inside: the agent says so, its tools go, and come back with what the server had written."""
    agent.seen.clear()
    assert (await agent.call("run_python", code=KILL)).text.strip().isdigit()
    async with asyncio.timeout(SERVES_WITHIN_S):
        while ("McpServer/notes", "Crashed") not in agent.seen or agent.reason("notes") != "Serving":
            await asyncio.sleep(0.01)
    assert len(agent.tools("notes")) > 5
    graph = json.loads((await agent.call("notes__read_graph")).text)
    assert [entity["name"] for entity in graph["entities"]] == ["Ada"]


async def test_a_base_that_nobody_has_built_is_told(driver: Driver) -> None:
    with pytest.raises(Exception, match="nothing-here") as refused:
        await driver.create(SandboxSpec("none-1", base="nothing-here"), deadline_s=30)
    if driver.name == "namespaces":
        assert isinstance(refused.value, Invalid)
    assert not [s for s in await driver.list() if s.instance == "none-1"]
