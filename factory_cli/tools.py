"""List, watch and call the tools of all agents."""

from __future__ import annotations

import asyncio
import json

from factory_cli.client import CALL_WITHIN_S, Client
from factory_cli.failures import CommandFailedError
from factory_cli.output import Output, free_json
from factory_cli.requests import PAGE_SIZE, duration, pages, struct
from hyperfactory.v1 import agent_service_pb2, tool_service_pb2

ALL_CREWS = "-"
CALL_MARGIN_S = 5.0
"""The server ends the call at its timeout; its answer may take this much longer."""


async def list_(client: Client, out: Output, crew: str, agent: str) -> None:
    """Print the tools that the caller's scope may use."""
    crew_id = await _crew_id(client, crew)
    agent_id = await agent_in(client, crew_id, agent) if agent else ""

    async def fetch(token: str) -> tool_service_pb2.ToolServiceListToolsResponse:
        request = tool_service_pb2.ToolServiceListToolsRequest(
            crew=crew_id, agent=agent_id, page_size=PAGE_SIZE, page_token=token
        )
        return await client.tools.ListTools(request, timeout=CALL_WITHIN_S)

    found = [tool async for page in pages(fetch) for tool in page.tools]
    if out.as_json:
        out.document({"tools": found})
        return
    rows = [
        (t.name, t.agent_name, t.crew, "reads" if t.tool.read_only else "writes", _age(t), _first_line(t))
        for t in found
    ]
    out.table(("TOOL", "AGENT", "CREW", "", "", "DESCRIPTION"), rows)


async def watch(client: Client, out: Output, crew: str, idle_s: float) -> None:
    """Print the tools as they are, then each change, until told to stop."""
    request = tool_service_pb2.WatchToolsRequest(crew=await _crew_id(client, crew))
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(idle_s or None) as limit:
            async for response in client.tools.WatchTools(request):
                _tell(out, response)
                if idle_s and (response.upserted or response.removed or response.synced):
                    limit.reschedule(loop.time() + idle_s)
    except TimeoutError:
        return  # nothing changed for as long as was asked


async def call(client: Client, out: Output, crew: str, name: str, arguments: str, timeout_s: float) -> None:
    """Call a tool; one that fails is a failed command."""
    request = tool_service_pb2.ToolServiceCallToolRequest(
        crew=await client.crew_id(crew),
        name=name,
        arguments=struct(arguments, "arguments"),
        timeout=duration(timeout_s),
    )
    async for response in client.tools.CallTool(request, timeout=timeout_s + CALL_MARGIN_S):
        if out.as_json:
            out.line(response)
        if response.HasField("progress"):
            out.text(f"  {response.progress.fraction:4.0%}  {response.progress.message}")
            continue
        result = response.result
        if result.is_error:
            raise CommandFailedError(f"the tool failed: {result.text}")
        if not out.as_json:
            show_result(out, result)
        return
    raise CommandFailedError("the call's stream ended before its result")


async def _crew_id(client: Client, crew: str) -> str:
    return crew if crew == ALL_CREWS else await client.crew_id(crew)


async def agent_in(client: Client, crew_id: str, agent: str) -> str:
    """The agent that is meant, which exists: by id or crew/name, or by its name where the crew is said."""
    if "/" in agent:
        return await client.agent_id(agent)
    if crew_id == ALL_CREWS:
        return (await client.agent(agent)).id
    return (await client.member(crew_id, agent)).id


def show_result(out: Output, result: agent_service_pb2.ToolResult) -> None:
    """Print what the tool said, once: most say as text, too, what they say as structure."""
    structured = free_json(result.structured) if result.HasField("structured") else None
    if structured is None or not _says(result.text, structured):
        out.text(result.text)
    if structured is not None:
        out.document(structured)


def _says(text: str, value: object) -> bool:
    try:
        return bool(json.loads(text) == value)
    except ValueError:
        return False


def _tell(out: Output, response: tool_service_pb2.WatchToolsResponse) -> None:
    if out.as_json:
        if response.upserted or response.removed or response.synced:
            out.line(response)
        return
    for key in response.removed:
        out.text(f"- {key.name}")
    for tool in response.upserted:
        out.text(f"+ {tool.name}  {_age(tool)}".rstrip())
    if response.synced:
        out.text("these are all; changes follow")


def _age(tool: tool_service_pb2.RegisteredTool) -> str:
    return "stale" if tool.stale else ""


def _first_line(tool: tool_service_pb2.RegisteredTool) -> str:
    return (tool.tool.description.splitlines() or [""])[0][:80]
