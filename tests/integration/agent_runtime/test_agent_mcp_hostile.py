"""MCP at its bounds: answers that are none, callers who want it all, readers who do not read."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from typing import Any

import grpc
import pytest

from agent_runtime.mcp import answers
from agent_runtime.mcp.exchange import Exchange
from agent_runtime.mcp.limits import (
    SESSIONS_MAX,
    STREAMS_MAX,
    STREAMS_OF_CALLER_MAX,
    WAITING_MAX,
    WAITING_MAX_BYTES,
)
from agent_runtime.tasks import Progress
from agent_runtime.tools.registry import Call, Outcome, Tool
from tests.integration.agent_runtime.parts import Instance, World, call_tool, until
from tests.integration.agent_runtime.test_agent_mcp import FIXTURE, HANDSHAKE, WORKER, Session, http_of
from tests.support.mcp import CODER, WITHIN_S, Http, Mcp, McpFailure, read_answer, request
from wire.identity import operator_spiffe
from wire.mcp.revisions import META_CLIENT_CAPABILITIES, META_VERSION, STATELESS

EVE = {**CODER, "x-hyperfactory-caller": operator_spiffe("eve")}
ANYTHING = {"type": "object"}
STEPS = 20_000


class Odd:
    """What a profile's code may answer, though it should not."""

    RESULTS: dict[str, Any] = {  # noqa: RUF012 (never changed)
        "nan": {"x": float("nan")},
        "bytes": {"x": b"raw"},
        "huge": {"x": "x" * 3_000_000},
    }

    async def answer(self, call: Call) -> Outcome:
        return Outcome("", self.RESULTS[call.arguments["as"]])

    async def flood(self, call: Call) -> Outcome:
        for step in range(STEPS):
            await call.report(step / STEPS, "on the way " * 20, {})
        return Outcome("done")

    async def long(self, _call: Call) -> Outcome:
        return Outcome("x" * 3_000_000)


async def odd(world: World) -> tuple[Instance, Http]:
    agent, http = await http_of(world)
    code = Odd()
    tools = [Tool(name, "", ANYTHING, getattr(code, name)) for name in ("answer", "flood", "long")]
    agent.runtime.agent().parts.registry.replace("odd", tools)
    return agent, http


async def test_an_answer_that_is_no_json_is_an_error_that_a_model_can_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, http = await odd(world)
    monkeypatch.setattr(answers, "ANSWER_MAX_BYTES", 1_000_000)
    mcp = Mcp(http.path)
    session = await Session(http).begin()
    for name in Odd.RESULTS:
        told = await mcp.call("answer", **{"as": name})
        again = await session.send("tools/call", {"name": "answer", "arguments": {"as": name}}, 7)
        for result in (told, again.json()["result"]):
            assert result["isError"], name
            assert "the answer" in result["content"][0]["text"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_tool(agent.stub, "long", {})
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_who_promised_a_structured_result_gives_one_though_it_be_empty(world: World) -> None:
    agent, http = await http_of(world)

    async def nothing(_call: Call) -> Outcome:
        return Outcome("nothing there")

    promised = Tool("promised", "", ANYTHING, nothing, output_schema=ANYTHING)
    agent.runtime.agent().parts.registry.replace("odd", [promised, Tool("free", "", ANYTHING, nothing)])
    mcp = Mcp(http.path)
    assert (await mcp.call("promised"))["structuredContent"] == {}
    assert "structuredContent" not in await mcp.call("free")


LONG = "x" * 30_000


@pytest.mark.parametrize(
    ("method", "params", "identifier"),
    [
        ("initialize", {"protocolVersion": HANDSHAKE, "capabilities": {"a": LONG}, "clientInfo": {}}, 1),
        ("initialize", {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": LONG}}, 1),
        ("ping", {}, LONG),
        ("tools/list", {"_meta": {"progressToken": LONG}}, 1),
    ],
)
async def test_what_is_kept_of_a_client_is_bounded(
    world: World, method: str, params: dict[str, Any], identifier: Any
) -> None:
    _, http = await http_of(world)
    answer = await Session(http).send(method, params, identifier)
    assert answer.json()["error"]["code"] in (-32600, -32602)


async def test_a_stream_is_about_so_many_resources(world: World) -> None:
    _, http = await http_of(world, spec=FIXTURE)
    for uris in (["test://static-text"] * 257, ["test://" + LONG]):
        with pytest.raises(McpFailure) as refused:
            wanted = {"toolsListChanged": True, "resourceSubscriptions": uris}
            await Mcp(http.path).ask("subscriptions/listen", notifications=wanted)
        assert refused.value.code == -32602


def test_what_waits_for_a_reader_is_bounded_in_bytes_too() -> None:
    exchange = Exchange("token")
    for step in range(100):
        exchange.progress(Progress(step / 100, "m" * 1_000_000))
    assert len(exchange) <= WAITING_MAX_BYTES // 1_000_000


async def test_the_name_that_comes_twice_in_a_body_is_the_one_that_is_judged(world: World) -> None:
    _, http = await http_of(world)
    mcp = Mcp(http.path, {**CODER, "x-hyperfactory-scopes": "reviewer"})
    meta = json.dumps({META_VERSION: STATELESS, META_CLIENT_CAPABILITIES: {}})
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_files","name":"write_file",'
    body += b'"arguments":{"path":"x","content":"y"},"_meta":' + meta.encode() + b"}}"
    for name, status, code in (("list_files", 400, -32020), ("write_file", 403, 7)):
        headers, _ = mcp.compose("tools/call", {"name": name})
        answer = await http.send("POST", "/mcp", headers, body)
        assert (answer.status, answer.json()["error"]["code"]) == (status, code)


async def test_nobody_ends_anothers_session_by_beginning_many(world: World) -> None:
    agent, http = await http_of(world, spec=WORKER)
    working = await Session(http).begin()
    body = working.message("tools/call", {"name": "slow", "arguments": {}})
    async with http.connect() as (_, writer):
        writer.write(request("POST", "/mcp", working.headers, body))
        await until(lambda: len(agent.runtime.agent().tool_calls) == 1)
        for _ in range(SESSIONS_MAX + 2):
            last = await Session(http, EVE).begin()
        assert (await working.send("ping")).status == 200
        assert (await last.send("ping")).status == 200
        assert len(agent.runtime.agent().tool_calls) == 1


async def test_nobody_takes_all_the_streams(world: World) -> None:
    _, http = await http_of(world)
    greedy, other = Mcp(http.path), Mcp(http.path, EVE)
    opened = [await listening(greedy) for _ in range(STREAMS_OF_CALLER_MAX)]
    with pytest.raises(McpFailure) as refused:
        await greedy.ask("subscriptions/listen", notifications={"toolsListChanged": True})
    assert (refused.value.code, refused.value.status) == (8, 429)
    opened.append(await listening(other))
    assert len(opened) < STREAMS_MAX
    for writer in opened:
        writer.close()

    async def room() -> bool:
        try:
            (await listening(greedy)).close()
        except AssertionError:
            return False
        return True

    await until(room)


async def listening(mcp: Mcp) -> Any:
    """The writing side of a connection on which a stream is open."""
    reader, writer = await asyncio.open_unix_connection(str(mcp.http.path))
    writer.write(
        request(
            "POST",
            "/mcp",
            *mcp.compose("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
        )
    )
    answer = await read_answer(reader)
    if answer.status != 200:
        writer.close()
    assert answer.status == 200
    return writer


async def test_who_does_not_read_makes_nobody_hold_his_progress(world: World) -> None:
    agent, http = await odd(world)
    body = Mcp(http.path).compose("tools/call", {"name": "flood", "arguments": {}}, progressToken="p")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        deaf.connect(str(http.path))
        deaf.sendall(request("POST", "/mcp", *body))
        deaf.setblocking(False)
        await until(lambda: select.select([deaf], [], [], 0)[0])
        await until(lambda: len(agent.runtime.agent().tool_calls) == 0)
        heard = await all_of(deaf)
    told = heard.count(b"notifications/progress")
    assert 0 < told < STEPS - WAITING_MAX, "all of it was kept"
    assert b'"text":"done"' in heard


async def all_of(deaf: socket.socket) -> bytes:
    """What comes, up to the end of the stream."""
    heard = b""
    async with asyncio.timeout(WITHIN_S):
        while not heard.endswith(b"0\r\n\r\n"):
            heard += await asyncio.get_running_loop().sock_recv(deaf, 1 << 16)
    return heard
