"""MCP beyond what the conformance suite looks at: sessions and their owners, cancellation, streams of changes."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agent_runtime.mcp.limits import SESSIONS_MAX
from agent_runtime.tools.registry import Call, Outcome, Tool
from tests.integration.agent_runtime.parts import Instance, World, call_tool, until
from tests.support.mcp import CODER, REVIEWER, WITHIN_S, Answer, Http, Mcp, McpFailure
from wire.identity import operator_spiffe

WORKER = {"entry_point": "tests.integration.agent_runtime.agents:Worker"}
FIXTURE = {"entry_point": "tests.support.mcp_fixture:Fixture"}
HANDSHAKE = "2025-11-25"
CHANGE_VISIBLE_S = 0.1
PAGE = Path(__file__).parents[3] / "docs" / "mcp.md"
DEEP = b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":' + b"[" * 90 + b"]" * 90 + b"}}"


async def never(_call: Call) -> Outcome:
    return Outcome("")


def tool(name: str, *, read_only: bool) -> Tool:
    return Tool(name, "", {"type": "object"}, never, read_only=read_only)


class Session:
    """A client of the handshake era."""

    def __init__(self, http: Http, who: Mapping[str, str] = CODER) -> None:
        self.http = http
        self.headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            **who,
        }

    async def begin(self, **capabilities: Any) -> Session:
        info = {"name": "test", "version": "1"}
        params = {"protocolVersion": HANDSHAKE, "capabilities": capabilities, "clientInfo": info}
        answer = await self.send("initialize", params)
        assert answer.json()["result"]["protocolVersion"] == HANDSHAKE
        self.headers |= {
            "mcp-protocol-version": HANDSHAKE,
            "mcp-session-id": answer.headers["mcp-session-id"],
        }
        return self

    async def send(self, method: str, params: Any = None, identifier: Any = 1) -> Answer:
        return await self.http.send("POST", "/mcp", self.headers, self.message(method, params, identifier))

    @staticmethod
    def message(method: str, params: Any = None, identifier: Any = 1) -> bytes:
        message = {"jsonrpc": "2.0", "method": method, "params": params or {}}
        return json.dumps(message if identifier is None else {**message, "id": identifier}).encode()


async def http_of(world: World, **options: Any) -> tuple[Instance, Http]:
    agent = await world.agent(**options)
    return agent, Http(agent.runtime.paths.http)


async def test_a_session_is_its_callers_and_ends_when_told(world: World) -> None:
    _, http = await http_of(world)
    session = await Session(http).begin()
    assert (await session.send("ping")).json()["result"] == {}
    thief = Session(http, {**CODER, "x-hyperfactory-caller": operator_spiffe("eve")})
    thief.headers["mcp-session-id"] = session.headers["mcp-session-id"]
    assert (await thief.send("ping")).status == 404
    assert (await http.send("DELETE", "/mcp", session.headers)).status == 204
    assert (await session.send("ping")).status == 404


async def test_sessions_are_bounded_and_the_oldest_goes(world: World) -> None:
    _, http = await http_of(world)
    first = await Session(http).begin()
    for _ in range(SESSIONS_MAX):
        last = await Session(http).begin()
    assert (await first.send("ping")).status == 404
    assert (await last.send("ping")).status == 200


async def test_a_client_cancels_a_call_of_its_session(world: World) -> None:
    agent, http = await http_of(world, spec=WORKER)
    session = await Session(http).begin()
    body = session.message("tools/call", {"name": "slow", "arguments": {}}, "call-1")
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(http.send("POST", "/mcp", session.headers, body))
        await until(lambda: len(agent.runtime.agent().tool_calls) == 1)
        told = await session.send("notifications/cancelled", {"requestId": "call-1"}, None)
        assert told.status == 202
        await until(lambda: len(agent.runtime.agent().tool_calls) == 0)
    assert calling.result().status == 202


async def test_a_question_to_a_client_that_cannot_answer_is_not_asked(world: World) -> None:
    _, http = await http_of(world, spec=FIXTURE)
    session = await Session(http).begin(elicitation={})
    answer = await session.send("tools/call", {"name": "test_sampling", "arguments": {"prompt": "?"}})
    assert answer.json()["error"]["code"] == -32021
    with pytest.raises(McpFailure) as refused:
        await Mcp(http.path).call("test_sampling", prompt="?")
    assert (refused.value.code, refused.value.status) == (-32021, 400)


async def test_state_of_one_call_or_caller_is_not_anothers(world: World) -> None:
    _, http = await http_of(world, spec=FIXTURE)
    able = {"elicitation": {}}
    mcp = Mcp(http.path, capabilities=able)
    asked = await mcp.call("test_input_required_result_request_state")
    answers = {"confirm": {"action": "accept", "content": {"ok": True}}}
    again = {"arguments": {}, "inputResponses": answers, "requestState": asked["requestState"]}
    other = Mcp(http.path, {**CODER, "x-hyperfactory-caller": operator_spiffe("eve")}, able)
    for client, name in (
        (mcp, "test_input_required_result_tampered_state"),
        (other, "test_input_required_result_request_state"),
    ):
        with pytest.raises(McpFailure) as refused:
            await client.ask("tools/call", name=name, **again)
        assert refused.value.code == -32602
    done = await mcp.ask("tools/call", name="test_input_required_result_request_state", **again)
    assert "state-ok" in done["content"][0]["text"]


async def test_a_change_is_seen_at_once_by_those_whom_it_concerns(world: World) -> None:
    agent, http = await http_of(world)
    tools = agent.runtime.agent().offered.tools
    wish = {"notifications": {"toolsListChanged": True}}
    coder, reviewer = Mcp(http.path, CODER), Mcp(http.path, REVIEWER)
    async with (
        http.stream("POST", "/mcp", *coder.compose("subscriptions/listen", wish)) as wide,
        http.stream("POST", "/mcp", *reviewer.compose("subscriptions/listen", wish)) as narrow,
    ):
        for stream in (wide, narrow):
            assert (await stream.message())["method"] == "notifications/subscriptions/acknowledged"
        taken_s = []
        for number in range(20):
            began_s = time.monotonic()
            tools.replace("skill/x", [tool(f"t{number}", read_only=False)])
            assert (await wide.message())["method"] == "notifications/tools/list_changed"
            taken_s.append(time.monotonic() - began_s)
        assert min(taken_s) < CHANGE_VISIBLE_S
        tools.replace("skill/y", [tool("seen", read_only=True)])
        # The reviewer hears of the one change that it can see, and of no other before it.
        assert (await narrow.message())["method"] == "notifications/tools/list_changed"
        assert "seen" in [each["name"] for each in (await reviewer.ask("tools/list"))["tools"]]
    await until(lambda: agent.runtime.agent().offered.listeners == 1)  # the factory's session stays


async def test_the_get_stream_tells_a_session_of_changes_and_of_what_it_subscribed_to(world: World) -> None:
    agent, http = await http_of(world, spec=FIXTURE)
    session = await Session(http).begin()
    await session.send("resources/subscribe", {"uri": "test://watched-resource"})
    offered = agent.runtime.agent().offered
    async with http.stream("GET", "/mcp", session.headers) as stream:
        assert await stream.chunk() == b":\n\n"
        offered.updated("test://static-text")
        offered.updated("test://watched-resource")
        updated = await stream.message()
        assert updated["method"] == "notifications/resources/updated"
        assert updated["params"] == {"uri": "test://watched-resource"}
        offered.tools.replace("skill/x", [tool("fresh", read_only=True)])
        assert (await stream.message())["method"] == "notifications/tools/list_changed"
    modern = {**session.headers, "mcp-protocol-version": "2026-07-28"}
    assert (await http.send("GET", "/mcp", modern)).status == 405


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', -32700),
        (DEEP, -32600),
        (b"[]", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', -32600),
    ],
)
async def test_what_is_no_message_is_told_so(world: World, body: bytes, code: int) -> None:
    _, http = await http_of(world)
    answer = await http.send("POST", "/mcp", {**CODER, "content-type": "application/json"}, body)
    assert (answer.status, answer.json()["error"]["code"]) == (400, code)


async def test_an_unknown_tool_and_bad_arguments_are_told_apart(world: World) -> None:
    _, http = await http_of(world)
    mcp = Mcp(http.path)
    with pytest.raises(McpFailure) as unknown:
        await mcp.call("no_such_tool")
    assert unknown.value.code == -32602
    wrong = await mcp.call("read_file", path=5)
    assert wrong["isError"]
    assert "must be of type string" in wrong["content"][0]["text"]


async def test_the_example_of_the_page_about_mcp_works(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("page_about_mcp")
    exec(compile(example, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    _, http = await http_of(world, spec={"entry_point": f"{module.__name__}:Greeter"})
    mcp = Mcp(http.path, REVIEWER, {"elicitation": {}})
    assert (await mcp.call("greet"))["inputRequests"]["who"]["method"] == "elicitation/create"
    answers = {"who": {"action": "accept", "content": {"name": "Ada"}}}
    done = await mcp.ask("tools/call", name="greet", arguments={}, inputResponses=answers)
    assert done["content"][0]["text"] == "Hello, Ada!"


async def test_a_call_without_mcp_cannot_be_asked(world: World) -> None:
    agent, _ = await http_of(world, spec=FIXTURE)
    async with asyncio.timeout(WITHIN_S):
        result = await call_tool(agent.stub, "test_elicitation", {"message": "?"})
        mixed = await call_tool(agent.stub, "test_multiple_content_types", {})
    assert result.is_error
    assert "MCP" in result.text
    assert mixed.text.splitlines()[:2] == ["Multiple content types test:", "[image image/png]"]
