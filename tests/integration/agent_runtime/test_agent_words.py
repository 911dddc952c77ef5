"""Tasks in words: the model of an agent without code of its own answers, streams, remembers its context, ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Value

from agent_runtime.structs import to_struct
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import types_pb2
from tests.integration.agent_runtime.parts import Instance, World, plain, run_task, until
from tests.support.upstream import Turn, Upstream, call, delta, end, says, upstream
from wire.tokens import SCOPES_METADATA


def said(text: str, context: str = "", **more: Any) -> dict[str, Any]:
    return {"text": text, "a2a": {"contextId": context}, **more}


def turns(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in body["messages"]]


async def agent(world: World, model: Upstream, name: str = "solo", **settings: Any) -> Instance:
    return await world.agent(
        name, spec={"model": types_pb2.Model(base_url=model.url, model="m-1", **settings)}
    )


async def test_the_model_answers_in_pieces_that_are_together_the_output(world: World) -> None:
    async with upstream(says("Hello dear world")) as model:
        steps, result = await run_task((await agent(world, model)).stub, "t1", {"text": "hi"})
    assert "".join(step.delta for step in steps) == "Hello dear world"
    assert plain(result.output) == {"text": "Hello dear world"}
    assert (result.finish_reason, result.usage.input_tokens, result.usage.output_tokens) == ("stop", 7, 3)
    assert turns(model.seen[0]) == [("user", "hi")]


async def test_its_tools_are_called_and_the_rest_of_the_input_goes_with_the_text(world: World) -> None:
    write = json.dumps({"path": "a.txt", "content": "hello"})
    first = Turn(events=[delta("Wait. "), *call("write_file", write), *end("tool_calls")])
    async with upstream(first, says("Done.")) as model:
        instance = await agent(world, model)
        steps, result = await run_task(instance.stub, "t1", {"text": "write", "n": 7})
    assert (instance.runtime.paths.workspace / "a.txt").read_text() == "hello"
    assert turns(model.seen[0]) == [("user", 'write\n\n{"n": 7}')]
    assert plain(result.output) == {"text": "Wait. Done."}
    assert [step.message for step in steps if step.message] == ["calls write_file"]
    assert result.usage.input_tokens == 14


async def test_the_factory_narrows_the_tools_to_whom_it_asks_for(world: World) -> None:
    async with upstream(says("ok")) as model:
        instance = await agent(world, model)
        request = pb.AgentServiceRunTaskRequest(task="t", input=to_struct({"text": "hi"}))
        asked = instance.stub.RunTask(request, timeout=20, metadata=((SCOPES_METADATA, "reviewer"),))
        assert [update async for update in asked][-1].result.finish_reason == "stop"
    offered = {tool["function"]["name"] for tool in model.seen[0]["tools"]}
    assert "read_file" in offered
    assert "write_file" not in offered


async def test_a_context_is_a_conversation_and_others_know_nothing_of_it(world: World) -> None:
    async with upstream(says("Hello Ada."), says("Ada."), says("Who knows."), says("None.")) as model:
        stub = (await agent(world, model)).stub
        await run_task(stub, "t1", said("I am Ada.", "talk-1"))
        await run_task(stub, "t2", said("Who am I?", "talk-1"))
        await run_task(stub, "t3", said("Who am I?", "talk-2"))
        await run_task(stub, "t4", {"text": "Who am I?"})
    first = [("user", "I am Ada."), ("assistant", "Hello Ada.")]
    assert turns(model.seen[1]) == [*first, ("user", "Who am I?")]
    assert turns(model.seen[2]) == turns(model.seen[3]) == [("user", "Who am I?")]


async def test_a_failure_is_the_tasks_with_its_reason_and_leaves_nothing_in_the_context(world: World) -> None:
    wrong = Turn(status=400, body={"error": {"message": "no such model"}})
    cut = Turn(events=[delta("half"), None])
    async with upstream(wrong, cut, says("Whole.")) as model:
        stub = (await agent(world, model)).stub
        _, refused = await run_task(stub, "t1", said("one", "talk-1"))
        steps, broken = await run_task(stub, "t2", said("two", "talk-1"))
        _, result = await run_task(stub, "t3", said("three", "talk-1"))
    assert (refused.status.code, broken.status.code) == (9, 14)
    assert "no such model" in refused.status.message
    assert [step.delta for step in steps] == ["half"]
    assert not broken.output.fields
    assert plain(result.output) == {"text": "Whole."}
    assert turns(model.seen[2]) == [("user", "three")]


async def test_calls_that_nobody_may_carry_out_are_a_failure(world: World) -> None:
    async with upstream(Turn(events=[*call("write_file", "{}"), *end("tool_calls")])) as model:
        _, result = await run_task((await agent(world, model, max_tool_rounds=0)).stub, "t", {"text": "x"})
    assert result.status.code == 9
    assert "calls of tools" in result.status.message


async def test_a_cancelled_task_ends_the_models_call_and_leaves_no_trace(world: World) -> None:
    endless = Turn(events=[delta("and")] + [0.02, delta(" so on")] * 500)
    async with upstream(endless, says("Yes.")) as model:
        instance = await agent(world, model)
        request = pb.AgentServiceRunTaskRequest(task="t1", input=to_struct(said("talk", "talk-1")))
        running = instance.stub.RunTask(request, timeout=20)
        assert (await running.read()).progress.delta == "and"
        running.cancel()
        async with asyncio.timeout(5):
            await model.gone.wait()
        await until(lambda: len(instance.runtime.agent().tasks) == 0)
        await run_task(instance.stub, "t2", said("again", "talk-1"))
    assert turns(model.seen[1]) == [("user", "again")]


@pytest.mark.parametrize("given", [{"n": 1}, {"text": 5}, {"text": ""}, {"a2a": "x"}])
async def test_what_is_not_in_words_is_repeated_as_before(world: World, given: dict[str, Any]) -> None:
    async with upstream() as model:
        _, result = await run_task((await agent(world, model)).stub, "t", given)
    assert plain(result.output)["echo"] == given


@pytest.mark.parametrize(
    ("spec", "echoed"),
    [({}, True), ({"entry_point": "tests.integration.agent_runtime.agents:Worker"}, False)],
    ids=["no model", "own code"],
)
async def test_without_a_model_or_with_code_of_its_own_nothing_changes(
    world: World, spec: dict[str, Any], echoed: bool
) -> None:
    _, result = await run_task((await world.agent(spec=spec)).stub, "t", {"text": "hi"})
    assert ("echo" in plain(result.output)) is echoed
    assert not result.finish_reason


async def test_a_script_that_the_profile_names_answers_too(world: World) -> None:
    script = {"kind": "scripted", "turns": [{"reply": {"text": "One."}}, {"reply": {"text": "Two."}}]}
    stub = (await world.agent(config={"model": script})).stub
    answers = [(await run_task(stub, f"t{n}", said("go on", "c")))[1] for n in range(3)]
    assert [plain(result.output).get("text") for result in answers] == ["One.", "Two.", None]
    assert "has 2 turns" in answers[2].status.message


def vectors(*found: list[float], model: str = "e-1") -> Turn:
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(found)]
    return Turn(path="/v1/embeddings", body={"data": data}, expect=lambda body: body["model"] == model)


@pytest.mark.parametrize(("later", "anew"), [("e-1", False), ("e-2", True)])
async def test_what_was_said_and_the_vectors_are_there_again_after_hibernation(
    world: World, later: str, anew: bool
) -> None:
    again = [vectors([1.0, 0.0], [0.0, 1.0], model=later)] if anew else []
    script = [
        says("Hello Ada."),
        vectors([1.0, 0.0], [0.0, 1.0]),
        vectors([1.0, 0.1]),
        *again,
        vectors([0.1, 1.0], model=later),
        says("Ada."),
    ]
    async with upstream(*script) as model:
        first = await agent(world, model, "one", embedding_model="e-1")
        await run_task(first.stub, "t1", said("I am Ada.", "talk-1"))
        for key in ("a", "b"):
            await first.stub.PutMemory(pb.PutMemoryRequest(key=key, value=Value(string_value=key)), timeout=5)
        search = pb.SearchMemoryRequest(query="q", limit=2)
        assert [hit.key for hit in (await first.stub.SearchMemory(search, timeout=10)).hits] == ["a", "b"]
        state = (await first.stub.Suspend(pb.SuspendRequest(), timeout=10)).state
        spec = types_pb2.Model(base_url=model.url, model="m-1", embedding_model=later)
        woken = await world.agent("one", spec={"model": spec}, state=state, generation=2)
        assert [hit.key for hit in (await woken.stub.SearchMemory(search, timeout=10)).hits] == ["b", "a"]
        await run_task(woken.stub, "t2", said("Who am I?", "talk-1"))
    assert turns(model.seen[-1])[0] == ("user", "I am Ada.")
