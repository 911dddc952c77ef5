"""The agent's HTTP socket: who may call, what malformed requests get, streams, and clients that go away."""

from __future__ import annotations

import asyncio
import select
import socket
from pathlib import Path

import pytest

from agent_runtime.http import connection
from agent_runtime.http.limits import BODY_MAX_BYTES, CONNECTIONS_MAX
from tests.integration.agent_runtime.parts import World, until
from tests.support.mcp import CODER, REVIEWER, Http, Mcp, McpFailure, read_answer, request

AGENTS = "tests.integration.agent_runtime.agents"
WORKER = {"entry_point": f"{AGENTS}:Worker"}


async def socket_of(world: World, **options: object) -> Path:
    return (await world.agent(**options)).runtime.paths.http


async def test_health_tells_whether_somebody_is_at_home(world: World) -> None:
    agent = await world.agent()
    http = Http(agent.runtime.paths.http)
    assert (await http.send("GET", "/health", {})).json() == {"status": "SERVING"}
    await agent.runtime.drain(0)
    assert (await http.send("GET", "/health", {})).status == 503


async def test_a_tool_is_listed_and_called(world: World) -> None:
    mcp = Mcp(await socket_of(world))
    assert "write_file" in [tool["name"] for tool in (await mcp.ask("tools/list"))["tools"]]
    await mcp.call("write_file", path="a.txt", content="hello")
    assert (await mcp.call("read_file", path="a.txt"))["content"] == [{"type": "text", "text": "hello"}]


async def test_a_narrow_scope_sees_and_calls_what_changes_nothing(world: World) -> None:
    mcp = Mcp(await socket_of(world), REVIEWER)
    tools = (await mcp.ask("tools/list"))["tools"]
    assert {tool["name"] for tool in tools} >= {"read_file", "list_files"}
    assert all(tool["annotations"]["readOnlyHint"] for tool in tools)
    with pytest.raises(McpFailure) as refused:
        await mcp.call("write_file", path="a.txt", content="x")
    assert (refused.value.code, refused.value.status) == (7, 403)
    assert refused.value.data["reason"] == "SCOPE_MISSING"


async def test_an_agents_own_scope_bounds_its_callers(world: World) -> None:
    mcp = Mcp(await socket_of(world, spec={"scope": "reviewer"}), CODER)
    with pytest.raises(McpFailure) as refused:
        await mcp.call("write_file", path="a.txt", content="x")
    assert refused.value.code == 7


async def test_without_a_caller_nothing_is_told(world: World) -> None:
    http = Http(await socket_of(world))
    headers, body = Mcp(http.path, {}).compose("tools/list", {})
    assert (await http.send("POST", "/mcp", headers, body)).status == 401
    forged = {**headers, "x-hyperfactory-caller": "spiffe://elsewhere/factory"}
    assert (await http.send("POST", "/mcp", forged, body)).status == 401
    idle = {**headers, **CODER, "x-hyperfactory-scopes": "none"}
    assert (await http.send("POST", "/mcp", idle, body)).status == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:80"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost.evil.example"}, 403),
        ({"origin": "http://[evil"}, 403),
        ({"host": "127.0.0.1:8080", "origin": "http://localhost:3000"}, 200),
        ({"host": "solo.crew-c1.svc"}, 200),
        ({"host": "[::1]:80"}, 200),
    ],
)
async def test_host_and_origin_are_ours(world: World, headers: dict[str, str], status: int) -> None:
    http = Http(await socket_of(world))
    right, body = Mcp(http.path).compose("tools/list", {})
    assert (await http.send("POST", "/mcp", {**right, **headers}, body)).status == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/none", 404), ("PUT", "/mcp", 405), ("POST", "/health", 405), ("HEAD", "/health", 200)],
)
async def test_paths_and_methods_that_are_not_served(
    world: World, method: str, path: str, status: int
) -> None:
    http = Http(await socket_of(world))
    async with http.connect() as (reader, writer):
        writer.write(request(method, path, CODER))
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)


async def test_a_body_that_is_too_large_is_refused_before_it_comes(world: World) -> None:
    http = Http(await socket_of(world))
    async with http.connect() as (reader, writer):
        writer.write(
            b"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (BODY_MAX_BYTES + 1)
        )
        assert (await read_answer(reader)).status == 413
        assert await reader.read() == b""


async def test_a_connection_is_kept_and_requests_on_it_are_answered_in_order(world: World) -> None:
    http = Http(await socket_of(world))
    slow = Mcp(http.path).compose("tools/call", {"name": "run_python", "arguments": {"code": "print(1)"}})
    async with http.connect() as (reader, writer):
        writer.write(request("POST", "/mcp", *slow) + request("GET", "/health", {}))
        assert (await read_answer(reader)).json()["result"]["content"] == [{"type": "text", "text": "1"}]
        assert (await read_answer(reader)).json() == {"status": "SERVING"}
        writer.write(request("GET", "/health", {"connection": "close"}))
        assert (await read_answer(reader)).headers["connection"] == "close"
        assert await reader.read() == b""


async def test_a_client_that_goes_away_ends_its_call(world: World) -> None:
    agent = await world.agent(spec=WORKER)
    http = Http(agent.runtime.paths.http)
    for meta in ({}, {"progressToken": "p"}):
        headers, body = Mcp(http.path).compose("tools/call", {"name": "slow", "arguments": {}}, **meta)
        async with http.connect() as (reader, writer):
            writer.write(request("POST", "/mcp", headers, body))
            await until(lambda: len(agent.runtime.agent().tool_calls) == 1)
            if meta:
                await reader.readuntil(b"notifications/progress")
        await until(lambda: len(agent.runtime.agent().tool_calls) == 0)


async def test_a_request_in_small_pieces_gets_no_more_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RECEIVE_MAX_S", 0.3)
    http = Http(await socket_of(world))
    async with http.connect() as (reader, writer):
        ended = asyncio.get_running_loop().create_task(reader.read())
        pieces = 0
        while not ended.done():
            writer.write(b"G" if pieces == 0 else b"E")
            pieces += 1
            await asyncio.wait([ended], timeout=0.05)
            assert pieces < 100, "the connection is kept as long as something comes"


async def test_idle_connections_and_clients_that_do_not_read_are_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_MAX_S", 0.2)
    monkeypatch.setattr(connection, "WRITE_STALL_MAX_S", 0.2)
    http = Http(await socket_of(world))
    async with http.connect() as (reader, writer):
        writer.write(request("GET", "/health", {}))
        await read_answer(reader)
        assert await reader.read() == b""
    mcp = Mcp(http.path)
    await mcp.call("write_file", path="l", content="x" * 900_000)
    wish = request(
        "POST", "/mcp", *mcp.compose("tools/call", {"name": "read_file", "arguments": {"path": "l"}})
    )
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, str(http.path))
        await loop.sock_sendall(deaf, wish)
        ends = select.poll()
        ends.register(deaf, select.POLLHUP)
        await until(lambda: ends.poll(0))


async def test_connections_beyond_the_bound_are_closed_and_room_is_found_again(world: World) -> None:
    agent = await world.agent()
    http = Http(agent.runtime.paths.http)
    opened = [await asyncio.open_unix_connection(str(http.path)) for _ in range(CONNECTIONS_MAX)]
    for reader, writer in opened:
        writer.write(request("GET", "/health", {}))
        assert (await read_answer(reader)).status == 200
    async with http.connect() as (reader, _):
        assert await reader.read() == b""
    opened.pop()[1].close()

    async def served() -> bool:
        try:
            return (await http.send("GET", "/health", {})).status == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    await until(served)
    for _, writer in opened:
        writer.close()


async def test_the_end_of_an_instance_does_not_wait_for_streams(world: World) -> None:
    agent = await world.agent()
    mcp = Mcp(agent.runtime.paths.http)
    wish = mcp.compose("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    async with mcp.http.stream("POST", "/mcp", *wish) as stream:
        await stream.message()
        async with asyncio.timeout(2):
            await agent.runtime.stop()
    assert not agent.runtime.paths.http.exists()
