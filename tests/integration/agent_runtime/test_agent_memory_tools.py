"""An agent's memory from outside: by RPC, as tools of a model and of callers, and the crew's shared one."""

from __future__ import annotations

import json
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.struct_pb2 import Value

from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import types_pb2
from tests.integration.agent_runtime.parts import World, call_tool, plain, reason_of
from tests.support.upstream import Turn, call, end, says, upstream

NOTES = {"coffee": "Ada takes her coffee black.", "deploy": "Rollouts happen on Tuesdays."}


async def put(stub: Any, **notes: str) -> None:
    for key, note in notes.items():
        await stub.PutMemory(pb.PutMemoryRequest(key=key, value=Value(string_value=note)), timeout=5)


async def search(stub: Any, query: str, limit: int = 2) -> list[Any]:
    request = pb.SearchMemoryRequest(query=query, limit=limit)
    return list((await stub.SearchMemory(request, timeout=10)).hits)


async def test_memory_is_searched_by_words_without_a_model(world: World) -> None:
    stub = (await world.agent()).stub
    assert await search(stub, "anything") == []
    await put(stub, **NOTES)
    [best, other] = await search(stub, "who drinks coffee?")
    assert (best.key, best.value.string_value) == ("coffee", NOTES["coffee"])
    assert 1.0 >= best.score > other.score >= -1.0
    await stub.PutMemory(pb.PutMemoryRequest(key="coffee"), timeout=5)
    assert [hit.key for hit in await search(stub, "coffee")] == ["deploy"]


async def test_memory_is_searched_by_the_models_embeddings_where_it_has_some(world: World) -> None:
    def embeddings(*vectors: list[float]) -> Turn:
        data = [{"index": i, "embedding": vector} for i, vector in reversed(list(enumerate(vectors)))]
        return Turn(
            path="/v1/embeddings", body={"data": data}, expect=lambda body: body["model"] == "embed-1"
        )

    turns = [embeddings([1.0, 0.0], [0.0, 2.0]), embeddings([0.1, 3.0])]
    async with upstream(*turns) as model:
        spec = types_pb2.Model(base_url=model.url, model="m", embedding_model="embed-1")
        stub = (await world.agent(spec={"model": spec})).stub
        await put(stub, **NOTES)
        hits = await search(stub, "caffeine")
    assert [hit.key for hit in hits] == ["deploy", "coffee"]
    assert hits[0].score == pytest.approx(3.0 / (9.01**0.5), abs=1e-6)
    assert model.seen[0]["input"] == [f"{key} {note}" for key, note in NOTES.items()]


async def test_embeddings_that_are_none_are_an_error(world: World) -> None:
    broken = [Turn(path="/v1/embeddings", body={"data": []}) for _ in range(2)]
    async with upstream(*broken) as model:
        spec = types_pb2.Model(base_url=model.url, model="m", embedding_model="e", max_retries=1)
        stub = (await world.agent(spec={"model": spec})).stub
        await put(stub, a="b")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await search(stub, "q")
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_tools_put_get_search_and_delete(world: World) -> None:
    stub = (await world.agent()).stub
    for key, note in NOTES.items():
        assert not (await call_tool(stub, "memory_put", {"key": key, "value": note})).is_error
    assert (await call_tool(stub, "memory_get", {"key": "coffee"})).text == NOTES["coffee"]
    found = await call_tool(stub, "memory_search", {"query": "Tuesdays", "limit": 1})
    assert plain(found.structured)["hits"][0]["key"] == "deploy"
    await call_tool(stub, "memory_delete", {"key": "deploy"})
    assert (await call_tool(stub, "memory_get", {"key": "deploy"})).is_error
    too_much = await call_tool(stub, "memory_put", {"key": "k", "value": "x" * 300_000})
    assert too_much.is_error
    assert "bytes under one key" in too_much.text


async def test_a_reviewer_reads_memory_and_does_not_write_it(world: World) -> None:
    await put((await world.agent()).stub, **NOTES)
    stub = await world.dial("solo", world.agent_identity("critic", scope="reviewer"))
    assert (await call_tool(stub, "memory_get", {"key": "coffee"})).text == NOTES["coffee"]
    for name, arguments in (("memory_put", {"key": "a", "value": 1}), ("memory_delete", {"key": "coffee"})):
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await call_tool(stub, name, arguments)
        assert reason_of(denied.value) == "SCOPE_MISSING"


async def test_what_one_agent_shares_its_mates_find(bussed: World) -> None:
    one, two = (await bussed.agent("one")).stub, (await bussed.agent("two")).stub
    note = {"key": "plan", "value": {"step": "paint the fence green"}, "shared": True}
    assert not (await call_tool(one, "memory_put", note)).is_error
    await call_tool(one, "memory_put", {"key": "own", "value": "green"})
    found = await call_tool(two, "memory_search", {"query": "green fence", "shared": True})
    assert [hit["key"] for hit in plain(found.structured)["hits"]] == ["plan"]
    got = await call_tool(two, "memory_get", {"key": "plan", "shared": True})
    assert json.loads(got.text) == {"step": "paint the fence green"}
    await call_tool(two, "memory_delete", {"key": "plan", "shared": True})
    assert (await call_tool(one, "memory_get", {"key": "plan", "shared": True})).is_error


async def test_a_model_uses_its_memory(world: World) -> None:
    turns = [
        Turn(events=[*call("memory_put", '{"key": "name", "value": "Ada"}'), *end("tool_calls")]),
        says("Noted.", expect=lambda body: "remembered 'name'" in body["messages"][-1]["content"]),
        Turn(events=[*call("memory_search", '{"query": "name"}'), *end("tool_calls")]),
        says("Ada.", expect=lambda body: body["messages"][-1]["content"] == "name: Ada"),
    ]
    async with upstream(*turns) as model:
        instance = await world.agent(spec={"model": types_pb2.Model(base_url=model.url, model="m")})
        for text, answer in (("I am Ada", "Noted."), ("Who am I?", "Ada.")):
            request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content=text)])
            said = [response async for response in instance.stub.Chat(request, timeout=10)]
            assert "".join(response.delta for response in said) == answer
