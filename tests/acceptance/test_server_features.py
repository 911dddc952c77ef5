"""The protocol's own server with one of everything as an agent's capability, used by the official client."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import mcp_types as mcp
import pytest
from mcp import Client as McpClient
from mcp import MCPError
from running import ROOT, Client, Running
from test_servers import conditions, create_profile

from hyperfactory.v1 import types_pb2

pytestmark = pytest.mark.timeout(240)  # the base may have to be built first
BASE = "everything"
BUILD_WITHIN_S = 180
WITHIN_S = 20.0
TEXT = "demo://resource/dynamic/text/{resourceId}"
STATIC = "demo://resource/static/document/features.md"
TEAM = mcp.PromptReference(type="ref/prompt", name="all__completable-prompt")


@pytest.fixture(scope="module")
def base(running: Running) -> Iterator[str]:
    """The server from npm, as its lock file says: built once for this checkout, linked into the stack's home."""
    source, built = Path(__file__).parent / "node" / BASE, ROOT / "build" / "bases" / BASE
    subprocess.run([ROOT / "scripts" / "base.sh", source, built], check=True, timeout=BUILD_WITHIN_S)
    here = running.home / "bases" / BASE
    here.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-al", built, here], check=True)
    yield BASE
    shutil.rmtree(here)


@pytest.fixture
async def urls(running: Running, client: Client, proxy_url: str, base: str) -> AsyncIterator[tuple[str, str]]:
    """The MCP endpoints of an agent with that server, and of its crew."""
    server = types_pb2.McpServer(name="all", command="mcp-server-everything")
    profile = await create_profile(client, base, server)
    crew = await client.assemble(name="whole", members=[{"name": "clerk", "profile": profile}])
    agent = await conditions(client, crew.id, all="Serving")
    yield f"{proxy_url}/agents/{agent.id}/mcp", f"{proxy_url}/crews/{crew.id}/mcp"
    await client.disband(crew.id)


class Person:
    """Answers what a server asks, and hears what it says."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def fill_in(self, _context: Any, params: Any) -> mcp.ElicitResult:
        return mcp.ElicitResult(action="accept", content={"name": f"Ada, asked to {params.message[:14]}"})

    async def think(self, _context: Any, params: Any) -> mcp.CreateMessageResult:
        said = mcp.TextContent(type="text", text=f"thought of {params.messages[0].content.text}")
        return mcp.CreateMessageResult(role="assistant", content=said, model="of the caller")

    async def hear(self, said: Any) -> None:
        self.heard.append(said)

    async def step(self, done: float, total: float | None, _message: str | None) -> None:
        self.heard.append((round(done, 2), total))

    def client(self, url: str, mode: str) -> McpClient:
        return McpClient(
            url,
            mode=mode,
            elicitation_callback=self.fill_in,
            sampling_callback=self.think,
            logging_callback=self.hear,
        )


async def test_one_of_everything_works_in_both_eras(urls: tuple[str, str]):
    url, crew_url = urls
    for mode in ("auto", "legacy"):
        person = Person()
        async with person.client(url, mode) as client:
            await _library(client)
            await _questions(client, "all__")
            arguments = {"duration": 0.2, "steps": 2}
            await client.call_tool(
                "all__trigger-long-running-operation", arguments, progress_callback=person.step
            )
        assert (0.5, 1.0) in person.heard
        async with person.client(crew_url, mode) as client:
            await _questions(client, "clerk__all__")
    async with McpClient(url) as client:
        found = await client.call_tool("all__trigger-elicitation-request", {})
    assert "lacks the capability elicitation" in str(found.content), "nobody is there to be asked"


async def _library(client: McpClient) -> None:
    """Resources, templates, what results point to, prompts and the completion of their arguments."""
    async with asyncio.timeout(WITHIN_S):
        while STATIC not in [
            str(one.uri) for one in (await client.list_resources(cache_mode="refresh")).resources
        ]:
            await asyncio.sleep(0.02)
    templates = (await client.list_resource_templates()).resource_templates
    assert TEXT in [one.uri_template for one in templates]
    assert (await client.read_resource(STATIC)).contents[0].text
    assert "Resource 7" in (await client.read_resource(TEXT.replace("{resourceId}", "7"))).contents[0].text
    found = await client.call_tool(
        "all__gzip-file-as-resource", {"name": "z", "data": "data:text/plain,hello"}
    )
    link = found.content[0]
    assert (await client.read_resource(link.uri)).contents[0].blob
    with pytest.raises(MCPError, match="resource not found"):
        await client.read_resource("demo://nowhere")
    assert TEAM.name in [one.name for one in (await client.list_prompts()).prompts]
    got = await client.get_prompt(TEAM.name, {"department": "Sales", "name": "Eve"})
    assert "Eve" in got.messages[0].content.text
    argument, context = {"name": "name", "value": "D"}, {"department": "Sales"}
    completed = await client.complete(TEAM, argument, context_arguments=context)
    assert completed.completion.values == ["David"]


async def _questions(client: McpClient, prefix: str) -> None:
    """The server asks for words of a model, for words of a person, and where it may look."""

    async def said(tool: str, **arguments: Any) -> str:
        return str((await client.call_tool(f"{prefix}{tool}", arguments)).content)

    assert "thought of" in await said("trigger-sampling-request", prompt="rain", maxTokens=9)
    assert "Ada, asked to Please provide" in await said("trigger-elicitation-request")
    assert "file:///workspace" in await said("get-roots-list")
