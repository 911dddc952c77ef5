"""Tasks, chat and the agent's code: progress, failures, limits, cancellation, drain, hibernation."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value

from agent_runtime.limits import TASKS_MAX
from agent_runtime.structs import to_struct
from hyperfactory.v1 import agent_service_pb2 as pb
from tests.integration.agent_runtime.parts import (
    Instance,
    World,
    call_tool,
    plain,
    reason_of,
    run_task,
    until,
)
from wire.errors import Invalid
from wire.status import from_rpc_error

WORKER = {"entry_point": "tests.integration.agent_runtime.agents:Worker"}
BLOCKING = {"entry_point": "tests.integration.agent_runtime.agents:Blocking"}


def waiting(instance: Instance, task: str) -> Any:
    request = pb.AgentServiceRunTaskRequest(task=task, input=to_struct({"do": "wait"}))
    return instance.stub.RunTask(request, timeout=30)


async def begun(instance: Instance, task: str) -> Any:
    """A task that waits for ever, begun."""
    call = waiting(instance, task)
    await call.read()
    return call


async def test_a_task_streams_progress_and_ends_with_its_result(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    progress, result = await run_task(instance.stub, "t1", {})
    assert [plain(step.detail)["step"] for step in progress] == [0, 1, 2]
    assert plain(result.output) == {"task": "t1", "mates": ["solo"]}


@pytest.mark.parametrize(
    ("do", "code", "words"),
    [
        ("raise", 2, "ValueError"),
        ("refuse", 9, "not like this"),
        ("odd", 2, "no JSON"),
        ("large", 8, "more than"),
    ],
)
async def test_a_tasks_failure_is_its_result(world: World, do: str, code: int, words: str) -> None:
    instance = await world.agent(spec=WORKER)
    _, result = await run_task(instance.stub, "t1", {"do": do})
    assert result.status.code == code
    assert words in result.status.message


async def test_plain_functions_run_in_a_thread(world: World) -> None:
    instance = await world.agent(spec=BLOCKING)
    _, result = await run_task(instance.stub, "t1", {})
    assert plain(result.output)["thread"].startswith("profile")


async def test_more_tasks_than_allowed_are_refused_and_places_come_free(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    calls = [await begun(instance, f"t{number}") for number in range(TASKS_MAX)]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run_task(instance.stub, "one-more", {})
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    described = await instance.stub.Describe(pb.DescribeRequest(), timeout=5)
    assert described.description.running_tasks == TASKS_MAX
    for call in calls:
        call.cancel()
    agent = instance.runtime.agent()
    await until(lambda: len(agent.tasks) == 0)
    assert agent.parts.code.cancelled == TASKS_MAX  # type: ignore[attr-defined]
    await run_task(instance.stub, "one-more", {})


async def test_the_same_task_is_not_run_twice_at_once(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    call = await begun(instance, "t1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run_task(instance.stub, "t1", {})
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    call.cancel()


async def test_a_deadline_ends_the_task(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await run_task(instance.stub, "t1", {"do": "wait"}, timeout_s=0.2)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: len(instance.runtime.agent().tasks) == 0)


async def test_a_cancelled_task_kills_its_programs_group(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    workspace = instance.runtime.paths.workspace
    script = "sleep 1000 & echo $! > grandchild; wait"
    request = pb.AgentServiceRunTaskRequest(task="t", input=to_struct({"do": "program", "script": script}))
    call = instance.stub.RunTask(request, timeout=30)
    waiting_for_end = call.read()
    mark = workspace / "grandchild"
    reading = asyncio.ensure_future(waiting_for_end)  # noqa: TID251 - awaited below
    await until(lambda: mark.exists() and mark.read_text().strip())
    pid = int(mark.read_text())
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    from pathlib import Path

    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_drain_refuses_new_work_waits_and_counts_what_it_abandons(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    call = await begun(instance, "t1")
    request = pb.DrainRequest(grace=Duration(nanos=50_000_000))
    assert (await instance.stub.Drain(request, timeout=5)).abandoned_tasks == 1
    assert not await instance.serving()
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert reason_of(ended.value) == "DRAINING"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run_task(instance.stub, "t2", {})
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_drain_waits_for_a_task_that_ends_in_time(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    call = await begun(instance, "t1")
    draining = instance.stub.Drain(pb.DrainRequest(grace=Duration(seconds=20)), timeout=30)
    asked = asyncio.ensure_future(draining)  # noqa: TID251 - awaited below
    await until(lambda: not instance.runtime.agent().gate.open)
    call.cancel()
    assert (await asked).abandoned_tasks == 0


async def test_state_survives_hibernation(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    instance.runtime.agent().parts.code.state = b"of the profile"  # type: ignore[attr-defined]
    await instance.stub.PutMemory(pb.PutMemoryRequest(key="k", value=Value(number_value=7)), timeout=5)
    state = (await instance.stub.Suspend(pb.SuspendRequest(), timeout=5)).state
    successor = await world.agent(spec=WORKER, generation=2, state=state)
    found = await successor.stub.GetMemory(pb.GetMemoryRequest(key="k"), timeout=5)
    assert found.value.number_value == 7
    assert successor.runtime.agent().parts.code.state == b"of the profile"  # type: ignore[attr-defined]


async def test_a_large_state_travels(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    instance.runtime.agent().parts.code.state = bytes(15_000_000)  # type: ignore[attr-defined]
    state = (await instance.stub.Suspend(pb.SuspendRequest(), timeout=10)).state
    successor = await world.agent(spec=WORKER, generation=2, state=state)
    assert len(successor.runtime.agent().parts.code.state) == 15_000_000  # type: ignore[attr-defined]


async def test_a_damaged_state_is_refused_and_the_instance_can_start_afresh(world: World) -> None:
    first = await world.agent(spec=WORKER)
    state = (await first.stub.Suspend(pb.SuspendRequest(), timeout=5)).state
    damaged = pb.StateBlob(data=state.data + b"!", sha256=state.sha256)
    instance = await world.instance()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await instance.stub.Assume(await world.request("solo", generation=2, state=damaged), timeout=5)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await instance.stub.Assume(await world.request("solo", generation=2, state=state), timeout=5)


async def test_only_an_agent_idle_for_so_long_suspends(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    await instance.stub.ListTools(pb.ListToolsRequest(), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await instance.stub.Suspend(pb.SuspendRequest(idle_for=Duration(seconds=3600)), timeout=5)
    native = from_rpc_error(refused.value)
    assert (native.reason, native.metadata["state"]) == ("WRONG_STATE", "READY")
    assert 0 <= float(native.metadata["idle_s"]) < 60
    await until(lambda: instance.runtime.agent().gate.idle_s() >= 0.05)
    await instance.stub.Suspend(pb.SuspendRequest(idle_for=Duration(nanos=50_000_000)), timeout=5)


async def test_signals_wait_while_it_is_suspended(world: World) -> None:
    """Its state is out already: what a signal would change now, nobody would keep."""
    instance = await world.agent(spec={"entry_point": "tests.integration.agent_runtime.agents:Recorder"})
    code: Any = instance.runtime.agent().parts.code
    await instance.stub.Suspend(pb.SuspendRequest(), timeout=5)
    instance.runtime.inbox.accept(pb.SignalDelivery(broadcast="b1", signal="PING"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert code.seen == []
    await instance.stub.Resume(pb.ResumeRequest(), timeout=5)
    await until(lambda: code.seen == [("PING", {})])


async def test_a_suspension_taken_back_changes_nothing_and_tells_the_code(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    code: Any = instance.runtime.agent().parts.code
    code.state = b"kept"
    await instance.stub.PutMemory(pb.PutMemoryRequest(key="k", value=Value(number_value=7)), timeout=5)
    await instance.stub.Resume(pb.ResumeRequest(), timeout=5)
    await instance.stub.Suspend(pb.SuspendRequest(), timeout=5)
    code.state = b"as suspended"
    await instance.stub.Resume(pb.ResumeRequest(), timeout=5)
    assert code.state == b"kept"
    found = await instance.stub.GetMemory(pb.GetMemoryRequest(key="k"), timeout=5)
    assert found.value.number_value == 7
    await run_task(instance.stub, "t1", {})


async def test_taking_a_suspension_back_does_not_end_a_drain(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    await instance.stub.Suspend(pb.SuspendRequest(), timeout=5)
    await instance.stub.Drain(pb.DrainRequest(), timeout=5)
    await instance.stub.Resume(pb.ResumeRequest(), timeout=5)
    assert not instance.runtime.agent().gate.open


async def test_a_state_that_the_code_refuses_is_named_as_such(world: World) -> None:
    first = await world.agent(spec=WORKER)
    first.runtime.agent().parts.code.state = b"poison"  # type: ignore[attr-defined]
    state = (await first.stub.Suspend(pb.SuspendRequest(), timeout=5)).state
    instance = await world.instance()
    spec = {"entry_point": "tests.integration.agent_runtime.agents:BreaksAtResume"}
    request = await world.request("solo", generation=2, state=state, spec=spec)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await instance.stub.Assume(request, timeout=5)
    native = from_rpc_error(refused.value)
    assert isinstance(native, Invalid)
    assert [violation.field for violation in native.violations] == ["state.data"]


async def test_a_busy_agent_does_not_suspend_and_a_suspended_one_takes_no_work(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    call = await begun(instance, "t1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await instance.stub.Suspend(pb.SuspendRequest(), timeout=5)
    assert reason_of(refused.value) == "WRONG_STATE"
    call.cancel()
    await until(lambda: len(instance.runtime.agent().gate) == 0)
    state = (await instance.stub.Suspend(pb.SuspendRequest(), timeout=5)).state
    with pytest.raises(grpc.aio.AioRpcError) as shut:
        await instance.stub.PutMemory(pb.PutMemoryRequest(key="k", value=Value(bool_value=True)), timeout=5)
    assert reason_of(shut.value) == "DRAINING"
    await instance.stub.Resume(pb.ResumeRequest(state=state), timeout=5)
    await run_task(instance.stub, "t2", {})


async def test_memory_forgets_and_says_what_it_does_not_know(world: World) -> None:
    instance = await world.agent()
    await instance.stub.PutMemory(pb.PutMemoryRequest(key="k", value=Value(string_value="v")), timeout=5)
    await instance.stub.PutMemory(pb.PutMemoryRequest(key="k"), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await instance.stub.GetMemory(pb.GetMemoryRequest(key="k"), timeout=5)
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND


async def talk(instance: Instance, text: str) -> list[Any]:
    request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content=text)])
    return [response async for response in instance.stub.Chat(request, timeout=10)]


async def test_the_generic_agent_echoes_politely_in_pieces(world: World) -> None:
    instance = await world.agent()
    said = await talk(instance, "word " * 40)
    assert len(said) > 3
    assert "".join(response.delta for response in said).startswith('Thank you. You said: "word')
    assert said[-1].finish_reason == "stop"
    assert said[-1].usage.input_tokens == 50
    assert said[-1].usage.output_tokens > 50


async def test_a_scripted_model_calls_tools_and_goes_on_with_their_results(world: World) -> None:
    calls = [{"name": "write_file", "arguments": {"path": "a.txt", "content": "hello"}}]
    turns = [
        {"expect": {"contains": "write"}, "reply": {"text": "Writing. ", "tool_calls": calls}},
        {"expect": {"role": "tool", "contains": "wrote 5 bytes"}, "reply": {"text": "Done."}},
    ]
    instance = await world.agent(config={"model": {"kind": "scripted", "turns": turns}})
    said = await talk(instance, "please write")
    assert "".join(response.delta for response in said) == "Writing. Done."
    assert [call.name for response in said for call in response.tool_calls] == ["write_file"]
    assert (instance.runtime.paths.workspace / "a.txt").read_text() == "hello"


async def test_a_model_that_never_stops_calling_tools_is_stopped(world: World) -> None:
    turn = {"reply": {"tool_calls": [{"name": "no_such_tool"}]}, "repeat": True}
    instance = await world.agent(config={"model": {"kind": "scripted", "turns": [turn]}})
    assert (await talk(instance, "go"))[-1].finish_reason == "tool_calls"


async def test_a_conversation_off_the_script_is_refused(world: World) -> None:
    turn = {"expect": {"equals": "exactly this"}, "reply": {"text": "ok"}}
    instance = await world.agent(config={"model": {"kind": "scripted", "turns": [turn]}})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await talk(instance, "something else")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_profiles_own_chat_answers_and_its_defects_are_its_own(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    said = await talk(instance, "hello")
    assert ("".join(response.delta for response in said), said[-1].finish_reason) == ("own answer", "stop")
    with pytest.raises(grpc.aio.AioRpcError) as broken:
        await talk(instance, "break")
    assert reason_of(broken.value) == "AGENT_CODE_FAILED"


async def test_a_profiles_tools_report_progress_time_out_and_fail_by_name(world: World) -> None:
    instance = await world.agent(spec=WORKER)
    request = pb.CallToolRequest(name="slow", timeout=Duration(nanos=100_000_000))
    updates = [update async for update in instance.stub.CallTool(request, timeout=10)]
    assert updates[0].progress.message == "half"
    assert updates[-1].result.is_error
    with pytest.raises(grpc.aio.AioRpcError) as broken:
        await call_tool(instance.stub, "broken", {})
    assert reason_of(broken.value) == "AGENT_CODE_FAILED"
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await call_tool(instance.stub, "nothing", {})
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
