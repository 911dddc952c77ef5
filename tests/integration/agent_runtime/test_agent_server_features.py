"""What a server offers beside tools, and what it asks in the midst of a call, through the agent's endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from agent_runtime.servers import asking
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import types_pb2
from tests.integration.agent_runtime.parts import Instance, World, call_tool, until
from tests.integration.agent_runtime.test_agent_mcp import Session
from tests.support.mcp import CODER, REVIEWER, WITHIN_S, Http, Mcp, McpFailure, Stream
from wire.identity import operator_spiffe

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROGRAM = str(Path(__file__).parents[2] / "support" / "stdio_whole.py")
ERAS = {"old": (), "modern": ("modern",)}
NAMES = list(ERAS)
EVE = {**CODER, "x-hyperfactory-caller": operator_spiffe("eve")}
ACCEPTED = {"action": "accept", "content": {"name": "Ada"}}
ABLE: dict[str, Any] = {"elicitation": {}}


def server(name: str, *ways: str, **more: Any) -> types_pb2.McpServer:
    return types_pb2.McpServer(name=name, command=sys.executable, args=[PROGRAM, name, *ways], **more)


async def agent_with(world: World, *servers: types_pb2.McpServer) -> Instance:
    """An agent, once its servers have listed everything."""
    agent = await world.agent(f"a{len(world.mates)}", spec={"mcp_servers": servers})
    offered = agent.runtime.agent().offered
    hidden = types_pb2.MCP_AUDIENCE_NONE
    await until(lambda: len(offered.prompts) == 2 * sum(one.prompts != hidden for one in servers))
    templates = sum(one.resources != hidden for one in servers)
    await until(lambda: sum(one.template for one in offered.resources) == templates)
    return agent


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="hfa", dir="/tmp") as home:
        async with AsyncExitStack() as stack:
            yield World(Path(home), stack)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(world: World) -> Instance:
    """One with a server of each era, for all tests: each answers what it has had asked."""
    found = await agent_with(world, *(server(name, *ERAS[name]) for name in NAMES))
    (found.runtime.paths.workspace / "notes.txt").write_text("of use")
    (found.runtime.paths.workspace / "link.txt").symlink_to("/etc/passwd")
    return found


def client(agent: Instance, who: Mapping[str, str] = CODER, **capabilities: Any) -> Mcp:
    return Mcp(agent.runtime.paths.http, who, capabilities)


async def text_of(mcp: Mcp, uri: str) -> str:
    [content] = (await mcp.ask("resources/read", uri=uri))["contents"]
    return str(content["text"])


async def said(mcp: Mcp, tool: str, **arguments: Any) -> Any:
    """What a tool of the program says of itself."""
    return json.loads((await mcp.call(tool, **arguments))["content"][0]["text"])


async def refused(mcp: Mcp, method: str, **params: Any) -> McpFailure:
    with pytest.raises(McpFailure) as found:
        await mcp.ask(method, **params)
    return found.value


async def answered(mcp: Mcp, tool: str, asked: Any) -> Any:
    """What a call comes to whose caller says yes to everything."""
    answers = dict.fromkeys(asked["inputRequests"], ACCEPTED)
    again = {"inputResponses": answers, "requestState": asked["requestState"]}
    return await mcp.ask("tools/call", name=tool, arguments={}, **again)


async def test_resources_templates_and_prompts_of_both_eras_are_listed_and_read(agent: Instance) -> None:
    mcp = client(agent)
    listed = {one["uri"]: one for one in (await mcp.ask("resources/list"))["resources"]}
    assert {"memo://old", "memo://modern", "memo://shared", "file:///etc/hostname"} <= listed.keys()
    assert listed["memo://old"] == {"uri": "memo://old", "name": "of all", "annotations": {"priority": 1.0}}
    templates = (await mcp.ask("resources/templates/list"))["resourceTemplates"]
    assert [one["uriTemplate"] for one in templates] == [
        f"memo://{n}/{{name}}{{?part*}}" for n in sorted(NAMES)
    ]
    names = [one["name"] for one in (await mcp.ask("prompts/list"))["prompts"]]
    assert names == ["modern__confide", "modern__greet", "old__confide", "old__greet"]
    for name in NAMES:
        [content] = (await mcp.ask("resources/read", uri=f"memo://{name}"))["contents"]
        assert content["blob"]
        assert await text_of(mcp, f"memo://{name}/a?part=1") == f"{name} has memo://{name}/a?part=1"
        got = await mcp.ask("prompts/get", name=f"{name}__greet", arguments={"who": "Ada"})
        assert got["messages"][0]["content"]["text"] == f"{name}: hello Ada"
        assert got["description"] == "of use"
        lost = await refused(mcp, "resources/read", uri="memo://nowhere")
        assert (lost.code, lost.message) == (-32602, "resource not found")


@pytest.mark.parametrize("name", NAMES)
async def test_arguments_are_completed_by_the_server_in_their_context(agent: Instance, name: str) -> None:
    argument, context = {"name": "who", "value": "A"}, {"arguments": {"team": "blue"}}
    for ref, about in (
        ({"type": "ref/prompt", "name": f"{name}__greet"}, "greet"),
        (
            {"type": "ref/resource", "uri": f"memo://{name}/{{name}}{{?part*}}"},
            f"memo://{name}/{{name}}{{?part*}}",
        ),
    ):
        found = await client(agent).ask("completion/complete", ref=ref, argument=argument, context=context)
        assert found["completion"]["values"] == ["A!", about, '{"team": "blue"}']
        assert (found["completion"]["total"], found["completion"]["hasMore"]) == (7, True)


async def test_of_one_uri_the_first_declared_server_is_meant_and_the_other_says_so(agent: Instance) -> None:
    """Also while the first is down: a URI does not mean something else for a moment."""
    mcp, offered = client(agent), agent.runtime.agent().offered
    assert await text_of(mcp, "memo://shared") == "old has memo://shared"
    conditions = {c.type: c.message for c in offered.conditions()}
    assert "resources are another's" in conditions["McpServer/modern"]
    assert conditions["McpServer/old"] == ""
    os.kill(agent.runtime.agent().parts.servers.pids()["old"], signal.SIGKILL)
    await until(lambda: offered.resources.get("memo://old") is None)
    assert (await refused(mcp, "resources/read", uri="memo://shared")).code == -32602
    assert (await mcp.ask("resources/read", uri="memo://modern"))["contents"]
    await until(lambda: offered.resources.get("memo://shared") is not None)
    assert await text_of(mcp, "memo://shared") == "old has memo://shared"


async def test_who_may_not_write_reads_files_of_the_workspace_alone(agent: Instance) -> None:
    wide, narrow = client(agent), client(agent, REVIEWER)
    root = agent.runtime.paths.workspace.as_uri()
    assert "file:///etc/hostname" in await text_of(wide, "file:///etc/hostname")
    shown = {one["uri"] for one in (await narrow.ask("resources/list"))["resources"]}
    assert {f"{root}/notes.txt", "memo://old"} <= shown
    assert "file:///etc/hostname" not in shown
    assert f"{root}/notes.txt" in await text_of(narrow, f"{root}/notes.txt")
    for uri in ("file:///etc/hostname", f"{root}/link.txt"):
        denied = await refused(narrow, "resources/read", uri=uri)
        assert (denied.code, denied.data["reason"]) == (7, "SCOPE_MISSING")
    assert len((await narrow.ask("prompts/list"))["prompts"]) == 4


async def test_a_profile_keeps_resources_and_prompts_for_writers_or_for_nobody(world: World) -> None:
    writers, nobody = types_pb2.MCP_AUDIENCE_WRITERS, types_pb2.MCP_AUDIENCE_NONE
    servers = (server("a", resources=nobody, prompts=writers), server("b", resources=writers, prompts=nobody))
    agent = await agent_with(world, *servers)
    wide, narrow = client(agent), client(agent, REVIEWER)
    assert await text_of(wide, "memo://shared") == "b has memo://shared"
    assert [p["name"] for p in (await wide.ask("prompts/list"))["prompts"]] == ["a__confide", "a__greet"]
    for kind in ("resources", "prompts"):
        assert (await narrow.ask(f"{kind}/list"))[kind] == []
    for method, params in (("resources/read", {"uri": "memo://b"}), ("prompts/get", {"name": "a__greet"})):
        assert (await refused(narrow, method, **params)).code == 7


@asynccontextmanager
async def listening(mcp: Mcp, **wanted: Any) -> AsyncIterator[Stream]:
    wish = {"notifications": wanted}
    async with mcp.http.stream("POST", "/mcp", *mcp.compose("subscriptions/listen", wish)) as stream:
        assert (await stream.message())["params"]["notifications"] == wanted
        yield stream


@pytest.mark.parametrize("name", NAMES)
async def test_changes_that_a_server_tells_of_reach_whoever_listens(world: World, name: str) -> None:
    agent = await agent_with(world, server("one", *ERAS[name]))
    mcp = client(agent)
    async with listening(mcp, promptsListChanged=True, resourcesListChanged=True) as stream:
        await mcp.call("one__grow")
        heard = {(await stream.message())["method"] for _ in range(2)}
        assert heard == {f"notifications/{kind}/list_changed" for kind in ("prompts", "resources")}
    assert await text_of(mcp, "memo://grown") == "one has memo://grown"
    assert (await mcp.ask("prompts/get", name="one__grown"))["messages"]


@pytest.mark.parametrize("name", NAMES)
async def test_a_server_is_subscribed_to_as_long_as_somebody_hears(world: World, name: str) -> None:
    agent = await agent_with(world, server("one", *ERAS[name]))
    mcp = client(agent)

    async def subscribed(*uris: str) -> bool:
        return bool((await said(mcp, "one__state"))["subscribed"] == list(uris))

    async with listening(mcp, resourceSubscriptions=["memo://shared", "memo://nowhere"]) as stream:
        async with asyncio.timeout(WITHIN_S):
            while not await subscribed("memo://shared"):
                await asyncio.sleep(0.01)
        await mcp.call("one__touch")
        updated = await stream.message()
        assert updated["method"] == "notifications/resources/updated"
        assert updated["params"]["uri"] == "memo://shared"
    async with asyncio.timeout(WITHIN_S):
        while not await subscribed():
            await asyncio.sleep(0.01)


async def test_what_a_result_points_to_can_be_read_though_no_list_has_it(agent: Instance) -> None:
    mcp = client(agent)
    assert (await refused(mcp, "resources/read", uri="memo://linked")).code == -32602
    [link] = (await mcp.call("modern__link"))["content"]
    assert await text_of(mcp, link["uri"]) == "modern has memo://linked"


async def test_roots_are_the_workspace_whoever_calls(agent: Instance) -> None:
    root = agent.runtime.paths.workspace.as_uri()
    for name in NAMES:
        found = await said(client(agent), f"{name}__roots")
        assert found == {"roots": [{"uri": root, "name": "workspace"}]}
        assert (await said(client(agent), f"{name}__state"))["cwd"] == root


@pytest.mark.parametrize("name", NAMES)
async def test_a_question_goes_to_the_caller_who_comes_back_with_the_answer(
    agent: Instance, name: str
) -> None:
    mcp = client(agent, **ABLE)
    for method, params in (
        ("tools/call", {"name": f"{name}__ask_twice", "arguments": {}}),
        ("prompts/get", {"name": f"{name}__confide"}),
    ):
        answers: dict[str, Any] = {}
        state: dict[str, str] = {}
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = await mcp.ask(method, **params, inputResponses=answers, **state)
                if found["resultType"] != "input_required":
                    break
                assert {one["method"] for one in found["inputRequests"].values()} == {"elicitation/create"}
                answers |= dict.fromkeys(found["inputRequests"], ACCEPTED)
                state = {"requestState": found["requestState"]}
        assert "Ada" in json.dumps(found)


@pytest.mark.parametrize("name", NAMES)
async def test_a_caller_with_a_session_is_asked_while_it_waits(agent: Instance, name: str) -> None:
    http = Http(agent.runtime.paths.http)
    session = await Session(http).begin(**ABLE, sampling={})
    body = {"name": f"{name}__ask", "arguments": {"message": "Your name?"}}
    async with http.stream("POST", "/mcp", session.headers, session.message("tools/call", body, 7)) as stream:
        question = await stream.message()
        assert (question["method"], question["params"]["message"]) == ("elicitation/create", "Your name?")
        answer = {"jsonrpc": "2.0", "id": question["id"], "result": ACCEPTED}
        told = await http.send("POST", "/mcp", session.headers, json.dumps(answer).encode())
        assert told.status == 202
        result = (await stream.message())["result"]
    assert json.loads(result["content"][0]["text"]) == ACCEPTED
    logged = await session.send("tools/call", {"name": "old__log", "arguments": {}})
    assert logged.messages()[0]["params"] == {"level": "warning", "logger": "tool", "data": "mind this"}


async def test_whoever_cannot_be_asked_is_not_and_the_server_is_told(agent: Instance) -> None:
    able = client(agent, **ABLE)
    assert "lacks the capability sampling" in (await said(able, "old__sample"))["error"]["message"]
    by_rpc = await call_tool(agent.stub, "old__ask", {})
    assert "lacks the capability elicitation" in json.loads(by_rpc.text)["error"]["message"]
    assert (await refused(able, "tools/call", name="modern__sample", arguments={})).code == -32021


async def test_no_question_goes_to_somebody_elses_caller(agent: Instance) -> None:
    """While one caller is asked, nobody can tell whose call another question comes from."""
    ada, eve = client(agent, **ABLE), client(agent, EVE, **ABLE)
    asked = await ada.call("old__ask")
    found = await said(eve, "old__ask")
    assert "several callers" in found["error"]["message"]
    with pytest.raises(McpFailure, match="not ours"):
        await answered(eve, "old__ask", asked)
    done = await answered(ada, "old__ask", asked)
    assert json.loads(done["content"][0]["text"]) == ACCEPTED
    assert (await answered(ada, "old__ask", asked))["isError"], "answers are taken once"


async def test_an_agent_whose_caller_is_asked_does_not_fall_asleep(agent: Instance) -> None:
    mcp = client(agent, **ABLE)
    asked = await mcp.call("old__ask")
    assert asked["resultType"] == "input_required"
    with pytest.raises(grpc.aio.AioRpcError, match="at work") as busy:
        await agent.stub.Suspend(pb.SuspendRequest(), timeout=10)
    assert busy.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await answered(mcp, "old__ask", asked)


async def test_a_question_that_nobody_answers_ends(agent: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "QUESTION_MAX_S", 0.2)
    mcp, desk = client(agent, **ABLE), agent.runtime.agent().parts.servers
    asked = await mcp.call("old__ask")
    assert desk.waiting == 1
    await until(lambda: desk.waiting == 0)
    ended = await answered(mcp, "old__ask", asked)
    assert ended["isError"]
    assert "call again" in ended["content"][0]["text"]
    http = Http(agent.runtime.paths.http)
    session = await Session(http).begin(**ABLE)
    answer = await session.send("tools/call", {"name": "old__ask", "arguments": {}})
    text = answer.messages()[-1]["result"]["content"][0]["text"]
    assert "nobody answered" in text


async def test_a_question_ends_with_its_call(agent: Instance) -> None:
    http = Http(agent.runtime.paths.http)
    session = await Session(http).begin(**ABLE)
    body = session.message("tools/call", {"name": "old__ask", "arguments": {}}, 7)
    async with http.stream("POST", "/mcp", session.headers, body) as stream:
        assert (await stream.message())["method"] == "elicitation/create"
    await until(lambda: len(agent.runtime.agent().tool_calls) == 0)
    eve = client(agent, EVE, **ABLE)
    asked = await eve.call("old__ask")
    assert asked["resultType"] == "input_required", "nobody else's call runs any more"
    await answered(eve, "old__ask", asked)
