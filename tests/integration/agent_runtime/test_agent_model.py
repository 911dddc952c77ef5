"""An agent whose model is an OpenAI-compatible endpoint: streams, tools, repeats, limits, secrets, the way out."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from agent_runtime.structs import to_dict, to_struct
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import types_pb2
from tests.integration.agent_runtime.parts import Instance, World, reason_of, until
from tests.support.upstream import Turn, Upstream, call, delta, end, says, upstream

KEY = "sk-very-secret"
WRITE = json.dumps({"path": "a.txt", "content": "hello"})


async def agent(
    world: World, model: Upstream, *, env: dict[str, str] | None = None, **settings: Any
) -> Instance:
    spec = types_pb2.Model(base_url=model.url, model="m-1", api_key_secret="model-key", **settings)
    secrets = {"model-key": f"{KEY}\n"}
    return await world.agent(spec={"model": spec, "env": env or {}}, secrets=secrets)


async def talk(instance: Instance, text: str = "hi", timeout_s: float = 20, **more: Any) -> list[Any]:
    request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content=text)], **more)
    return [response async for response in instance.stub.Chat(request, timeout=timeout_s)]


def text_of(said: list[Any]) -> str:
    return "".join(response.delta for response in said)


async def test_an_answer_streams_as_it_comes_with_usage_and_the_key(world: World) -> None:
    async with upstream(says("Hello dear world")) as model:
        said = await talk(await agent(world, model))
    assert [response.delta for response in said[:-1]] == ["Hello", " dear", " world"]
    assert said[-1].finish_reason == "stop"
    assert (said[-1].usage.input_tokens, said[-1].usage.output_tokens) == (7, 3)
    assert model.authorizations == [f"Bearer {KEY}"]
    body = model.seen[0]
    assert (body["model"], body["stream"]) == ("m-1", True)
    assert {tool["function"]["name"] for tool in body["tools"]} >= {"read_file", "write_file"}


async def test_the_first_delta_does_not_wait_for_the_last(world: World) -> None:
    async with upstream(Turn(events=[delta("first"), 0.5, delta(" last"), *end()])) as model:
        instance = await agent(world, model)
        request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="hi")])
        stream = aiter(instance.stub.Chat(request, timeout=20))
        began_s = asyncio.get_running_loop().time()
        assert (await anext(stream)).delta == "first"
        assert asyncio.get_running_loop().time() - began_s < 0.5
        assert text_of([response async for response in stream]) == " last"


async def test_tools_are_called_and_their_results_fed_back(world: World) -> None:
    second = says("Done.", expect=lambda body: body["messages"][-1]["content"] == "wrote 5 bytes to a.txt")
    async with upstream(Turn(events=[*call("write_file", WRITE), *end("tool_calls")]), second) as model:
        instance = await agent(world, model)
        said = await talk(instance)
    assert text_of(said) == "Done."
    assert (instance.runtime.paths.workspace / "a.txt").read_text() == "hello"
    assert said[-1].finish_reason == "stop"
    assert not said[-1].tool_calls
    assert said[-1].usage.input_tokens == 14
    asked = model.seen[1]["messages"][1]
    assert asked["tool_calls"][0]["function"] == {"name": "write_file", "arguments": WRITE}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("{not json", "no JSON"), ('["list"]', "no JSON object"), ('{"path": 7}', "must be of type string")],
)
async def test_what_a_model_gets_wrong_is_told_to_it(world: World, arguments: str, words: str) -> None:
    def told(body: dict[str, Any]) -> bool:
        return body["messages"][-1]["role"] == "tool" and words in body["messages"][-1]["content"]

    first = Turn(events=[*call("read_file", arguments), *end("tool_calls")])
    async with upstream(first, says("Sorry.", expect=told)) as model:
        assert text_of(await talk(await agent(world, model))) == "Sorry."
    assert model.seen[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == arguments


async def test_a_reviewers_model_neither_sees_nor_calls_what_writes(world: World) -> None:
    def told(body: dict[str, Any]) -> bool:
        return "the scope does not reach" in body["messages"][-1]["content"]

    first = Turn(events=[*call("write_file", WRITE), *end("tool_calls")])
    async with upstream(first, says("Well.", expect=told)) as model:
        instance = await agent(world, model)
        stub = await world.dial("solo", world.agent_identity("critic", scope="reviewer"))
        request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="write")])
        said = [response async for response in stub.Chat(request, timeout=20)]
    assert text_of(said) == "Well."
    offered = {tool["function"]["name"] for tool in model.seen[0]["tools"]}
    assert "read_file" in offered
    assert "write_file" not in offered
    assert not (instance.runtime.paths.workspace / "a.txt").exists()


async def test_a_model_that_keeps_calling_tools_must_answer_at_last(world: World) -> None:
    again = [Turn(events=[*call("list_files", "{}"), *end("tool_calls")]) for _ in range(2)]
    last = says("Enough.", expect=lambda body: body["tool_choice"] == "none")
    async with upstream(*again, last) as model:
        assert text_of(await talk(await agent(world, model, max_tool_rounds=2))) == "Enough."


async def test_the_callers_own_tools_are_for_the_caller(world: World) -> None:
    weather = pb.Tool(name="weather", description="Says it.", input_schema=to_struct({"type": "object"}))
    first = Turn(events=[*call("weather", '{"city": "Bern"}', id="c1"), *end("tool_calls")])
    second = says(
        "Rain.",
        expect=lambda body: body["messages"][-1] == {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    )
    async with upstream(first, second) as model:
        instance = await agent(world, model)
        said = await talk(instance, tools=[weather])
        [use] = said[-1].tool_calls
        assert (said[-1].finish_reason, use.name, to_dict(use.arguments)) == (
            "tool_calls",
            "weather",
            {"city": "Bern"},
        )
        messages = [
            pb.ChatMessage(role="user", content="hi"),
            pb.ChatMessage(role="assistant", tool_calls=[use]),
            pb.ChatMessage(role="tool", content="rain", tool_call_id=use.id),
        ]
        request = pb.ChatRequest(messages=messages, tools=[weather])
        assert text_of([r async for r in instance.stub.Chat(request, timeout=20)]) == "Rain."


async def test_with_no_rounds_its_calls_go_to_the_caller(world: World) -> None:
    async with upstream(Turn(events=[*call("write_file", WRITE), *end("tool_calls")])) as model:
        instance = await agent(world, model, max_tool_rounds=0)
        said = await talk(instance)
    assert (said[-1].finish_reason, said[-1].tool_calls[0].name) == ("tool_calls", "write_file")
    assert not (instance.runtime.paths.workspace / "a.txt").exists()


async def test_options_travel(world: World) -> None:
    async with upstream(says("ok")) as model:
        options = pb.ChatOptions(temperature=0, max_output_tokens=5, stop=["."], seed=9)
        await talk(await agent(world, model), options=options)
    body = model.seen[0]
    assert (body["temperature"], body["max_tokens"], body["stop"], body["seed"]) == (0, 5, ["."], 9)
    assert "top_p" not in body


@pytest.mark.parametrize(
    "trouble",
    [
        Turn(status=500, body={"error": {"message": "oops"}}),
        Turn(status=503, body="<html>no"),
        Turn(body="{not json"),
        Turn(events=[None]),
        Turn(events=["data: {not json\n\n"]),
        Turn(events=[{"choices": []}]),
        Turn(events=[{"error": {"message": "overloaded"}}]),
    ],
    ids=["500", "503", "no-json", "dropped", "no-json-event", "cut", "error-event"],
)
async def test_what_may_pass_is_repeated(world: World, trouble: Turn) -> None:
    async with upstream(trouble, says("At last.")) as model:
        assert text_of(await talk(await agent(world, model))) == "At last."


async def test_retry_after_is_honoured(world: World) -> None:
    busy = Turn(status=429, headers={"Retry-After": "1"}, body={"error": {"message": "slow down"}})
    async with upstream(busy, says("Now.")) as model:
        assert text_of(await talk(await agent(world, model))) == "Now."
    assert 1.0 <= model.times_s[1] - model.times_s[0] < 2.0


async def test_repeats_are_bounded_and_a_long_wait_is_not_begun(world: World) -> None:
    busy = Turn(status=429, headers={"Retry-After": "600"}, body={"error": {"message": "tomorrow"}})
    async with upstream(busy) as model:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await talk(await agent(world, model))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "tomorrow" in str(refused.value.details())


async def test_repeats_end(world: World) -> None:
    oops = [Turn(status=500, body={"error": {"message": "oops"}}) for _ in range(2)]
    async with upstream(*oops) as model:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await talk(await agent(world, model, max_retries=1))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_answer_that_breaks_off_is_not_begun_anew(world: World) -> None:
    async with upstream(Turn(events=[delta("half a"), None])) as model:
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await talk(await agent(world, model))
    assert broken.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_refusal_is_not_repeated_and_the_key_is_not_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = Turn(status=401, body={"error": {"message": f"Incorrect API key provided: {KEY}"}})
    async with upstream(refusal) as model:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await talk(await agent(world, model))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "Incorrect API key provided: [key]" in str(refused.value.details())
    assert KEY not in caplog.text
    assert KEY not in repr(refused.value)


async def test_a_slow_model_is_given_up_in_time(world: World) -> None:
    async with upstream(Turn(events=[delta("wait"), 5.0, delta(" for it"), *end()])) as model:
        instance = await agent(world, model, timeout=Duration(nanos=300_000_000))
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await talk(instance)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_caller_who_leaves_ends_the_exchange(world: World) -> None:
    async with upstream(Turn(events=[delta("and")] + [0.02, delta(" so on")] * 500)) as model:
        instance = await agent(world, model)
        request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="hi")])
        stream = instance.stub.Chat(request, timeout=20)
        await stream.read()
        stream.cancel()
        async with asyncio.timeout(5):
            await model.gone.wait()
        await until(lambda: len(instance.runtime.agent().gate) == 0)


async def test_a_missing_secret_is_named_when_the_instance_becomes_an_agent(world: World) -> None:
    spec = types_pb2.Model(base_url="http://127.0.0.1:1/v1", model="m", api_key_secret="model-key")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.agent(spec={"model": spec})
    assert reason_of(refused.value) == "SECRET_MISSING"


@pytest.mark.parametrize(
    "url", ["https://user:pw@host/v1", "https://host/v1?key=1", "http://", "http://h:x/"]
)
async def test_a_base_url_that_is_none_is_refused(world: World, url: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.agent(spec={"model": types_pb2.Model(base_url=url, model="m")})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def server_tls(world: World, home: Path) -> tuple[ssl.SSLContext, str]:
    """A server's TLS for `localhost`, and the file of its root."""
    from wire.identity import part_spiffe

    identity = world.ca.issue(part_spiffe("gateway"), ["localhost"], ttl_s=3600)
    files = {name: home / f"model-{name}.pem" for name in ("cert", "key", "ca")}
    files["cert"].write_bytes(identity.certificate_pem)
    files["key"].write_bytes(identity.key_pem)
    files["ca"].write_bytes(identity.ca_pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files["cert"], files["key"])
    return context, str(files["ca"])


async def test_tls_is_checked(world: World, home: Path) -> None:
    context, ca_file = server_tls(world, home)
    async with upstream(says("Safe."), tls=context) as model:
        instance = await agent(world, model)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await talk(instance)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "is not trusted" in str(refused.value.details())
        trusting = await world.agent(
            "other",
            spec={"model": types_pb2.Model(base_url=model.url, model="m"), "env": {"SSL_CERT_FILE": ca_file}},
        )
        assert text_of(await talk(trusting)) == "Safe."


@asynccontextmanager
async def way_out(world: World, port: int, answer: bytes) -> AsyncIterator[list[bytes]]:
    """A crew's way out that leads every name to a port of this host, or refuses."""
    asked: list[bytes] = []

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(answer)
        if b" 200 " in answer:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(reader, far_writer))
                group.create_task(pump(far_reader, writer))
        writer.close()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_unix_server(lead, world.peers / "egress.sock")
    try:
        yield asked
    finally:
        server.close()


async def test_a_crews_way_out_is_taken(world: World) -> None:
    async with upstream(says("Out there.")) as model:
        port = int(model.url.split(":")[2].split("/")[0])
        spec = types_pb2.Model(base_url="http://model.example/v1", model="m")
        async with way_out(world, port, b"HTTP/1.1 200 go\r\n\r\n") as asked:
            instance = await world.agent(spec={"model": spec}, egress=True)
            assert text_of(await talk(instance)) == "Out there."
    assert asked == [b"CONNECT model.example:80 HTTP/1.1"]


async def test_a_way_out_that_refuses_says_why_and_is_not_asked_again(world: World) -> None:
    spec = types_pb2.Model(base_url="http://model.example/v1", model="m")
    async with way_out(world, 0, b"HTTP/1.1 403 HOST_NOT_ALLOWED\r\n\r\n") as asked:
        instance = await world.agent(spec={"model": spec}, egress=True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await talk(instance)
    assert "HOST_NOT_ALLOWED" in str(refused.value.details())
    assert len(asked) == 1
