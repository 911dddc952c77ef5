"""Chat on the agent's own HTTP socket, as the factory passes it on: streamed, whole, refused, abandoned."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from hyperfactory.v1 import types_pb2
from tests.integration.agent_runtime.parts import Instance, World, until
from tests.support.upstream import Turn, call, delta, end, says, upstream
from wire.identity import agent_spiffe, operator_spiffe

ADA = {"x-hyperfactory-caller": operator_spiffe("ada"), "x-hyperfactory-scopes": "admin"}
HI: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}


FORCED = {"type": "function", "function": {"name": "weather"}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SHAPE = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"maxLength": 3}}}


def session(instance: Instance) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(str(instance.runtime.paths.http))
    return aiohttp.ClientSession("http://localhost", connector=connector, headers=ADA)


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


async def test_an_answer_in_one_piece_and_streamed(world: World) -> None:
    async with upstream(says("Hello dear"), says("Hello dear")) as model:
        spec = types_pb2.Model(base_url=model.url, model="m")
        async with session(await world.agent(spec={"model": spec})) as http:
            whole = await (await http.post("/v1/chat/completions", json=HI)).json()
            assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Hello dear"}
            assert whole["usage"]["total_tokens"] == 10
            options = {"stream": True, "stream_options": {"include_usage": True}}
            streamed = await http.post("/v1/chat/completions", json=HI | options)
            assert streamed.headers["Content-Type"].startswith("text/event-stream")
            text = await streamed.text()
    said = events(text)
    assert text.endswith("data: [DONE]\n\n")
    deltas = [e["choices"][0]["delta"].get("content", "") for e in said if e["choices"]]
    assert "".join(deltas) == "Hello dear"
    assert said[0]["choices"][0]["delta"]["role"] == "assistant"
    assert said[-1]["usage"] == whole["usage"]


async def test_tools_that_the_agent_calls_itself_are_not_the_clients(world: World) -> None:
    turns = [Turn(events=[*call("list_files", "{}"), *end("tool_calls")]), says("None.")]
    async with upstream(*turns) as model:
        spec = types_pb2.Model(base_url=model.url, model="m")
        async with session(await world.agent(spec={"model": spec})) as http:
            text = await (await http.post("/v1/chat/completions", json=HI | {"stream": True})).text()
    assert not any(e["choices"][0]["delta"].get("tool_calls") for e in events(text))
    assert events(text)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{no json", "body"),
        ("[]", "body"),
        ("{}", "messages"),
        (json.dumps(HI | {"messages": [{"role": "king"}]}), "messages[0].role"),
        (json.dumps(HI | {"temperature": "hot"}), "temperature"),
        (json.dumps(HI | {"temperature": 9}), "temperature"),
        (json.dumps(HI | {"max_tokens": 0}), "max_tokens"),
        (json.dumps(HI | {"max_completion_tokens": -1}), "max_completion_tokens"),
        (json.dumps(HI | {"max_tokens": 2**31}), "max_tokens"),
        (json.dumps(HI | {"seed": 2**63}), "seed"),
        (json.dumps(HI | {"stop": ["a", ""]}), "stop"),
        (json.dumps(HI | {"stop": list("abcde")}), "stop"),
        (json.dumps(HI | {"presence_penalty": 1}), "presence_penalty"),
        (json.dumps(HI | {"n": 2}), "n"),
        (json.dumps(HI | {"tool_choice": "sometimes"}), "tool_choice"),
        (json.dumps(HI | {"tool_choice": FORCED}), "tool_choice"),
        (json.dumps(HI | {"response_format": {"type": "xml"}}), "response_format.type"),
        (json.dumps(HI | {"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (json.dumps(HI | {"tools": [{"type": "web"}]}), "tools[0]"),
        (json.dumps(HI | {"stream": "yes"}), "stream"),
        ("[" * 100_000, "body"),
    ],
)
async def test_a_bad_request_names_what_is_wrong(world: World, body: str, param: str) -> None:
    async with session(await world.agent()) as http:
        answer = await http.post("/v1/chat/completions", data=body)
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_options_reach_the_endpoint_as_they_were_asked(world: World) -> None:
    asked = {"max_completion_tokens": 9, "stop": "END", "temperature": 0.5, "seed": 2**40}
    forms = {"response_format": SHAPE, "tools": [WEATHER], "tool_choice": FORCED}
    wish = Turn(events=[*call("weather", "{}"), *end("tool_calls")])
    async with upstream(wish) as model:
        spec = types_pb2.Model(base_url=model.url, model="m")
        async with session(await world.agent(spec={"model": spec})) as http:
            answer = await (await http.post("/v1/chat/completions", json=HI | asked | forms)).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    body = model.seen[0]
    assert (body["max_tokens"], body["stop"], body["temperature"], body["seed"]) == (9, ["END"], 0.5, 2**40)
    assert (body["response_format"], body["tool_choice"]) == (SHAPE, FORCED)


async def test_a_tool_is_required_once_and_not_for_ever(world: World) -> None:
    asked = HI | {"tool_choice": "required"}
    turns = [
        Turn(
            events=[*call("list_files", "{}"), *end()], expect=lambda body: body["tool_choice"] == "required"
        ),
        says("None.", expect=lambda body: "tool_choice" not in body),
    ]
    async with upstream(*turns) as model:
        spec = types_pb2.Model(base_url=model.url, model="m")
        async with session(await world.agent(spec={"model": spec})) as http:
            answer = await (await http.post("/v1/chat/completions", json=asked)).json()
    assert answer["choices"][0]["message"]["content"] == "None."


@pytest.mark.parametrize(
    "forced", [{"tool_choice": "required"}, {"response_format": {"type": "json_object"}}]
)
async def test_a_script_cannot_be_forced_and_says_so(world: World, forced: dict[str, Any]) -> None:
    async with session(await world.agent()) as http:
        answer = await http.post("/v1/chat/completions", json=HI | forced)
        assert answer.status == 400
        assert next(iter(forced)) in (await answer.json())["error"]["message"]


async def test_a_failure_before_the_first_word_has_its_status_and_later_is_an_event(world: World) -> None:
    busy = Turn(status=429, headers={"Retry-After": "600"}, body={"error": {"message": "no"}})
    async with upstream(busy, Turn(events=[delta("half"), None])) as model:
        spec = types_pb2.Model(base_url=model.url, model="m")
        async with session(await world.agent(spec={"model": spec})) as http:
            answer = await http.post("/v1/chat/completions", json=HI | {"stream": True})
            assert (answer.status, answer.headers["Retry-After"]) == (429, "600")
            assert (await answer.json())["error"]["code"] == "LIMIT_REACHED"
            answer = await http.post("/v1/chat/completions", json=HI | {"stream": True})
            assert answer.status == 200
            text = await answer.text()
    assert events(text)[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in text


async def test_a_client_that_leaves_ends_the_conversation(world: World) -> None:
    async with upstream(Turn(events=[delta("and")] + [0.02, delta(" so on")] * 500)) as model:
        instance = await world.agent(spec={"model": types_pb2.Model(base_url=model.url, model="m")})
        async with session(instance) as http:
            answer = await http.post("/v1/chat/completions", json=HI | {"stream": True})
            await answer.content.readline()
            answer.close()
        async with asyncio.timeout(5):
            await model.gone.wait()
        await until(lambda: len(instance.runtime.agent().gate) == 0)


async def test_a_reviewers_chat_cannot_write(world: World) -> None:
    refused = says("Well.", expect=lambda body: "does not reach" in body["messages"][-1]["content"])
    wish = Turn(events=[*call("write_file", '{"path": "a", "content": "b"}'), *end("tool_calls")])
    async with upstream(wish, refused) as model:
        instance = await world.agent(spec={"model": types_pb2.Model(base_url=model.url, model="m")})
        async with session(instance) as http:
            critic = {
                "x-hyperfactory-caller": agent_spiffe("c1", "critic"),
                "x-hyperfactory-scopes": "reviewer",
            }
            await http.post("/v1/chat/completions", json=HI, headers=critic)
    assert not (instance.runtime.paths.workspace / "a").exists()


async def test_the_agent_is_its_only_model(world: World) -> None:
    async with session(await world.agent()) as http:
        listed = await (await http.get("/v1/models")).json()
    assert [entry["id"] for entry in listed["data"]] == ["c1/solo"]
