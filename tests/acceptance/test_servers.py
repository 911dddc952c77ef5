"""A profile's MCP server through the whole product: declared, given its secret, served, lost, healed, woken."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from running import ROOT, Client, Running, request_id

from factory_server.identity.secretfiles import SecretFiles
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import events_pb2, tool_service_pb2, tool_service_pb2_grpc, types_pb2
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import profile_service_pb2 as pp

pytestmark = pytest.mark.timeout(120)
WITHIN_S = 20.0
CALL_S = 15.0
BASE = "tiny"
SECRET = "bench-key"
VALUE = "correct-horse-battery-staple"
SMALL, LOST = "McpServer/small", "McpServer/lost"


@pytest.fixture(scope="module")
def base(running: Running) -> Iterator[str]:
    """A base with the tests' small server, and an example of a profile's own code."""
    home = running.home / "bases" / BASE
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "small-server"
    source = (ROOT / "tests" / "support" / "stdio_server.py").read_text()
    program.write_text(f"#!/usr/bin/env python3\n{source}")
    shutil.copytree(ROOT / "examples" / "bases" / "greeter" / "python", home / "python")
    for path in (home, *home.rglob("*")):
        path.chmod(0o755)
    yield BASE
    shutil.rmtree(home)


@pytest.fixture
def secret(running: Running) -> Iterator[SecretFiles]:
    files = SecretFiles(running.home)
    files.write(SECRET, VALUE.encode())
    yield files
    if SECRET in files.names():
        files.remove(SECRET)


async def create_profile(client: Client, base: str, *servers: types_pb2.McpServer) -> str:
    profile = types_pb2.Profile(name=f"office-{request_id()[:8]}")
    profile.spec.base = base
    profile.spec.mcp_servers.extend(servers)
    create = pp.CreateProfileRequest(request_id=request_id(), profile=profile)
    await client.profiles.CreateProfile(create, timeout=CALL_S, metadata=client.metadata)
    return profile.name


def small(**more: Any) -> types_pb2.McpServer:
    return types_pb2.McpServer(name="small", command="small-server", secret_env={"TOKEN": SECRET}, **more)


def details_of(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    """The detail of this kind, as any client reads it."""
    detail = kind()
    for packed in rpc_status.from_call(error).details:
        if packed.Unpack(detail):
            return detail
    raise AssertionError(f"no {kind.__name__} in {error}")


async def conditions(client: Client, crew: str, **wanted: str) -> Any:
    """The crew's only agent, once the servers are as wanted."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            [agent] = (await client.get(crew)).agents
            found = {c.type.removeprefix("McpServer/"): c.reason for c in agent.conditions}
            if all(found.get(name) == reason for name, reason in wanted.items()):
                return agent
            await asyncio.sleep(0.02)


async def call(client: Client, crew: str, tool: str, **arguments: Any) -> Any:
    tools = tool_service_pb2_grpc.ToolServiceStub(client.channel)
    request = tool_service_pb2.ToolServiceCallToolRequest(crew=crew, name=tool)
    request.arguments.update(arguments)
    updates = [u async for u in tools.CallTool(request, timeout=CALL_S, metadata=client.metadata)]
    return updates[-1].result


async def told(client: Client, crew: str) -> list[tuple[str, str]]:
    """The conditions that the crew's log tells of, in order."""
    request = cp.ListEventsRequest(crew=crew, page_size=500)
    page = await client.crews.ListEvents(request, timeout=CALL_S, metadata=client.metadata)
    turned = (e.condition for e in page.events if e.type == events_pb2.EVENT_TYPE_CONDITION)
    return [(condition.type, condition.reason) for condition in turned]


async def test_a_server_is_an_agents_capability_through_every_life(
    running: Running, client: Client, base: str, secret: SecretFiles
) -> None:
    profile = await create_profile(client, base, small(), types_pb2.McpServer(name="lost", command="no-such"))
    crew = await client.assemble(name="office", members=[{"name": "clerk", "profile": profile}])
    try:
        agent = await conditions(client, crew.id, small="Serving", lost="CommandNotFound")
        assert agent.state == types_pb2.AGENT_STATE_READY, "a server that cannot start is no agent's death"
        await _answers(client, crew.id)
        given = json.loads((await call(client, crew.id, "clerk__small__env")).text)
        assert given["TOKEN"] == VALUE
        os.kill(agent.instance.host_pid, signal.SIGKILL)
        await _serves_again(client, crew.id, 2)
        await _sleeps_and_wakes(client, agent.id, light=True)
        await _serves_again(client, crew.id, 2)
        await _sleeps_and_wakes(client, agent.id)
        await _serves_again(client, crew.id, 3)
        seen = await told(client, crew.id)
        assert (SMALL, "Serving") in seen
        assert (LOST, "CommandNotFound") in seen
    finally:
        await client.disband(crew.id)
    assert not _files_with(running.home, VALUE.encode())


async def _serves_again(client: Client, crew: str, generation: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (await client.get(crew)).agents[0].generation != generation:
            await asyncio.sleep(0.02)
    await conditions(client, crew, small="Serving")
    await _answers(client, crew)


async def _answers(client: Client, crew: str) -> None:
    """A call goes through; the registry may know the new instance a moment later than its condition."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                result = await call(client, crew, "clerk__small__echo", text="hello")
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                assert result.text == "hello"
                return


async def _sleeps_and_wakes(client: Client, agent: str, *, light: bool = False) -> None:
    sleep = fp.HibernateAgentRequest(request_id=request_id(), agent=agent, light=light)
    await client.factory.HibernateAgent(sleep, timeout=CALL_S, metadata=client.metadata)
    wake = fp.WakeAgentRequest(request_id=request_id(), agent=agent)
    await client.factory.WakeAgent(wake, timeout=CALL_S, metadata=client.metadata)


def _files_with(home: Path, value: bytes) -> list[Path]:
    """Files of the stack, its logs and its databases that hold the value, but for the secret's own."""
    found = []
    for path in home.rglob("*"):
        with suppress(OSError):  # sockets, and files that go while we look
            if path.parent.name != "secrets" and path.is_file() and value in path.read_bytes():
                found.append(path)
    return found


async def test_a_profile_brings_code_of_its_own_in_its_base(client: Client, base: str) -> None:
    profile = types_pb2.Profile(name=f"greeter-{request_id()[:8]}")
    profile.spec.base, profile.spec.entry_point = base, "greeter:Greeter"
    create = pp.CreateProfileRequest(request_id=request_id(), profile=profile)
    await client.profiles.CreateProfile(create, timeout=CALL_S, metadata=client.metadata)
    crew = await client.assemble(name="greet", members=[{"name": "host", "profile": profile.name}])
    try:
        asked = await call(client, crew.id, "host__greet")
        assert asked.is_error, "the caller over gRPC has no answers: it is told what the tool asks for"
    finally:
        await client.disband(crew.id)
    example = (ROOT / "examples" / "bases" / "greeter" / "python" / "greeter.py").read_text()
    assert example.partition("\n\n")[2] in (ROOT / "docs" / "mcp.md").read_text(), (
        "the page shows this very code"
    )


async def test_a_secret_that_is_missing_refuses_the_crew(client: Client, base: str) -> None:
    profile = await create_profile(client, base, small())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.assemble(name="office", members=[{"name": "clerk", "profile": profile}])
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    info = details_of(refused.value, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == ("SECRET_MISSING", {"secret": SECRET})


async def test_a_profile_that_contradicts_itself_is_refused_by_field(client: Client, base: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create_profile(client, base, small(), small())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = details_of(refused.value, error_details_pb2.BadRequest)
    assert [v.field for v in bad.field_violations] == ["profile.spec.mcp_servers[1].name"]


async def test_a_base_that_is_not_there_is_named_at_once(client: Client) -> None:
    profile = await create_profile(client, "not-there")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.assemble(name="nowhere", members=[{"name": "a", "profile": profile}])
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    [wrong] = details_of(refused.value, error_details_pb2.BadRequest).field_violations
    assert (wrong.field, "base 'not-there'" in wrong.description) == ("manifest.members[0].profile", True)
