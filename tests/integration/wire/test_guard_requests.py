"""What the guard does with requests and outcomes, on a real server: bad bytes, errors, streams, deadlines."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from hyperfactory.v1 import agent_service_pb2, agent_service_pb2_grpc, crew_service_pb2, types_pb2
from hyperfactory.v1 import crew_service_pb2_grpc as crew_stubs
from hyperfactory.v1 import factory_service_pb2 as pb
from hyperfactory.v1 import factory_service_pb2_grpc as stubs
from wire import errors
from wire.channels import open_control_channel
from wire.policy import PolicyTable, Row
from wire.status import DETAILS_KEY, from_rpc_error

CALL_MAX_S = 10.0
REQUEST = pb.GetAgentRequest(agent="ag-0123456789ab")
GET_AGENT = "/hyperfactory.v1.FactoryService/GetAgent"
ASSEMBLE = "/hyperfactory.v1.CrewService/AssembleCrew"


async def failure(call: Any) -> errors.FactoryError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def drain(call: Any) -> int:
    count = 0
    async for _ in call:
        count += 1
    return count


async def dialed(world: Any, factory: Any, outcome: Any = None, **guard: Any) -> grpc.aio.Channel:
    target = await world.serve(factory(world, outcome), **guard)
    return await world.dial(target, world.operator())


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28", b"\x00" * 9])
async def test_bytes_that_are_no_message_are_the_callers_fault(
    world: Any, factory: Any, send_raw: Any, body: bytes
) -> None:
    channel = await dialed(world, factory)
    error = await failure(send_raw(channel, GET_AGENT, body, pb.GetAgentResponse))
    assert isinstance(error, errors.Invalid)
    assert error.reason == "MALFORMED_MESSAGE"
    assert world.callers == []


async def test_unknown_fields_are_refused_with_their_path(world: Any, factory: Any, send_raw: Any) -> None:
    channel = await dialed(world, factory)
    member = b"\x0a\x01a\x12\x07generic" + b"\xfa\x3e\x01x"  # field 1007 of a member
    manifest = b"\x0a\x01c\x12" + bytes([len(member)]) + member
    body = b"\x12" + bytes([len(manifest)]) + manifest
    error = await failure(send_raw(channel, ASSEMBLE, body, crew_service_pb2.AssembleCrewResponse))
    assert isinstance(error, errors.Invalid)
    assert [violation.field for violation in error.violations] == ["manifest.members[0].1007"]


async def test_violations_are_spelled_as_paths_of_the_request(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory)
    request = crew_service_pb2.AssembleCrewRequest(
        request_id="no uuid",
        manifest=crew_service_pb2.CrewManifest(
            name="research",
            members=[
                crew_service_pb2.CrewMember(name="Bad_Name", profile="generic"),
                crew_service_pb2.CrewMember(name="ok", profile="generic", env={"not good": "x"}),
            ],
        ),
    )
    error = await failure(crew_stubs.CrewServiceStub(channel).AssembleCrew(request, timeout=CALL_MAX_S))
    assert isinstance(error, errors.Invalid)
    assert error.reason == "FIELD_INVALID"
    fields = {violation.field for violation in error.violations}
    assert fields == {"request_id", "manifest.members[0].name", 'manifest.members[1].env["not good"]'}
    assert all(violation.reason and violation.description for violation in error.violations)


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound("agent 'x' is unknown", resource_type="Agent", resource_name="x"),
        errors.Refused("agent 'x' is BUSY", metadata={"state": "BUSY"}),
        errors.Exhausted("at most 3 crews", quota="crews", retry_after_s=2.5, metadata={"limit": "crews"}),
        errors.Stale("agent 'x' was changed meanwhile"),
    ],
)
async def test_native_errors_arrive_as_they_were_raised(
    world: Any, factory: Any, error: errors.FactoryError
) -> None:
    channel = await dialed(world, factory, error)
    arrived = await failure(stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S))
    assert type(arrived) is type(error)
    assert arrived.__dict__ == error.__dict__


@pytest.mark.parametrize("stream", [False, True])
async def test_the_text_of_an_unknown_exception_never_leaves(
    world: Any, factory: Any, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    channel = await dialed(world, factory, RuntimeError("password=hunter2 in /etc/secret"))
    stub = stubs.FactoryServiceStub(channel)
    with (
        caplog.at_level(logging.ERROR, "hyperfactory.wire"),
        pytest.raises(grpc.aio.AioRpcError) as caught,
    ):
        if stream:
            await drain(stub.WatchAgents(pb.WatchAgentsRequest(), timeout=CALL_MAX_S))
        else:
            await stub.GetAgent(REQUEST, timeout=CALL_MAX_S)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in repr(caught.value) + repr(caught.value.trailing_metadata())
    incident = from_rpc_error(caught.value).metadata["incident"]
    lines = [record for record in caplog.records if getattr(record, "incident", "") == incident]
    assert len(lines) == 1
    assert lines[0].exc_info is not None


async def test_details_are_those_of_the_contract(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory, errors.Exhausted("at most 3", quota="crews", retry_after_s=2.0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S)
    raw = dict(caught.value.trailing_metadata())[DETAILS_KEY]  # type: ignore[call-overload]
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("hyperfactory.v1", "LIMIT_REACHED")
    assert [detail.TypeName() for detail in status.details] == [
        "google.rpc.ErrorInfo",
        "google.rpc.QuotaFailure",
        "google.rpc.RetryInfo",
    ]


async def test_a_stream_keeps_what_was_sent_before_its_error(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory, errors.OutOfRange("compacted", metadata={"oldest_cursor": "c9"}))
    call = stubs.FactoryServiceStub(channel).WatchAgents(pb.WatchAgentsRequest(), timeout=CALL_MAX_S)
    for _ in range(3):
        assert await call.read() is not grpc.aio.EOF
    error = await failure(call.read())
    assert isinstance(error, errors.OutOfRange)
    assert error.metadata == {"oldest_cursor": "c9"}


async def test_cancelling_a_stream_reaches_the_handler_and_is_no_incident(
    world: Any, factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = asyncio.Event()

    async def wait_for_ever(_request: Any, _context: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    channel = await dialed(world, factory, wait_for_ever)
    call = stubs.FactoryServiceStub(channel).WatchAgents(pb.WatchAgentsRequest())
    for _ in range(3):
        await call.read()
    call.cancel()
    async with asyncio.timeout(CALL_MAX_S):
        await cancelled.wait()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_reader_that_leaves_while_the_handler_writes_is_no_incident(
    world: Any, factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    left = asyncio.Event()
    blob = pb.WatchAgentsResponse(agents=[types_pb2.Agent(id="x" * 60_000)])

    async def write_for_ever(_request: Any, context: Any) -> None:
        try:
            while True:
                await context.write(blob)
        finally:
            left.set()

    channel = await dialed(world, factory, write_for_ever)
    call = stubs.FactoryServiceStub(channel).WatchAgents(pb.WatchAgentsRequest())
    for _ in range(5):
        await call.read()
    call.cancel()
    async with asyncio.timeout(CALL_MAX_S):
        await left.wait()
    await stubs.FactoryServiceStub(channel).GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_cancelling_a_unary_call_reaches_the_handler(world: Any, factory: Any) -> None:
    entered, cancelled, audited = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait_for_ever(_request: Any, _context: Any) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def audit(record: Any) -> None:
        world.audited.append(record)
        audited.set()

    channel = await dialed(world, factory, wait_for_ever, audit=audit)
    request = pb.StopAgentRequest(agent="ag-0123456789ab", request_id=str(uuid.uuid4()))
    call = stubs.FactoryServiceStub(channel).StopAgent(request)
    async with asyncio.timeout(CALL_MAX_S):
        await entered.wait()
        call.cancel()
        await cancelled.wait()
        await audited.wait()
    assert world.audited[0].code == "CANCELLED"


async def test_an_audited_call_says_who_did_what_on_what(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory)
    request = pb.StopAgentRequest(agent="ag-0123456789ab", request_id=str(uuid.uuid4()))
    await stubs.FactoryServiceStub(channel).StopAgent(request, timeout=CALL_MAX_S)
    record = world.audited[0]
    assert record.caller.name == "ada"
    assert (record.resource, record.request_id, record.code) == (
        "agent/ag-0123456789ab",
        request.request_id,
        "OK",
    )


async def test_a_read_is_not_audited(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory)
    await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S)
    assert world.audited == []


async def test_an_audit_that_fails_changes_no_answer(
    world: Any, factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_record: Any) -> None:
        raise OSError("disk full")

    channel = await dialed(world, factory, audit=broken)
    request = pb.StopAgentRequest(agent="ag-0123456789ab", request_id=str(uuid.uuid4()))
    await stubs.FactoryServiceStub(channel).StopAgent(request, timeout=CALL_MAX_S)
    assert "cannot audit call" in caplog.text


async def test_a_call_without_a_deadline_gets_that_of_its_row(world: Any, factory: Any) -> None:
    async def wait_for_ever(_request: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    rows = dict(world.policy.rows)
    rows[GET_AGENT] = Row(GET_AGENT, rows[GET_AGENT].principals, default_deadline_s=0.05)
    world.policy = PolicyTable(rows)
    channel = await dialed(world, factory, wait_for_ever)
    async with asyncio.timeout(CALL_MAX_S):
        error = await failure(stubs.FactoryServiceStub(channel).GetAgent(REQUEST))
    assert isinstance(error, errors.DeadlineExceeded)
    assert error.reason == "DEADLINE_EXCEEDED"


async def test_a_timeout_inside_a_handler_is_not_taken_for_the_deadline(world: Any, factory: Any) -> None:
    channel = await dialed(world, factory, TimeoutError())
    error = await failure(stubs.FactoryServiceStub(channel).GetAgent(REQUEST))
    assert isinstance(error, errors.Internal)


async def test_planned_methods_say_so(world: Any, factory: Any) -> None:
    rows = dict(world.policy.rows)
    rows[GET_AGENT] = dataclasses.replace(rows[GET_AGENT], planned="reading of agents")
    world.policy = PolicyTable(rows)
    channel = await dialed(world, factory)
    error = await failure(stubs.FactoryServiceStub(channel).GetAgent(REQUEST))
    assert isinstance(error, errors.Unimplemented)
    assert (error.reason, error.metadata["planned"]) == ("NOT_SERVED_YET", "reading of agents")


async def test_a_method_that_the_process_lacks_is_not_an_incident(world: Any, factory: Any) -> None:
    """Generated base methods raise NotImplementedError; the guard answers before they can."""
    channel = await dialed(world, factory)
    error = await failure(stubs.FactoryServiceStub(channel).GetPool(pb.GetPoolRequest(), timeout=CALL_MAX_S))
    assert isinstance(error, errors.Unimplemented)


async def test_a_method_without_a_row_is_denied(world: Any, factory: Any) -> None:
    rows = dict(world.policy.rows)
    del rows[GET_AGENT]
    world.policy = PolicyTable(rows)
    channel = await dialed(world, factory)
    error = await failure(stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S))
    assert isinstance(error, errors.Denied)
    assert world.callers == []


async def test_an_abort_by_the_handler_itself_passes(world: Any, factory: Any) -> None:
    async def abort(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.DATA_LOSS, "gone")

    channel = await dialed(world, factory, abort)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "gone")


async def test_each_message_of_a_stream_of_requests_is_checked(world: Any, agent: Any, trusted: Any) -> None:
    target = await world.serve(agent(world), tls=False, trusted_caller=trusted)

    async def messages() -> AsyncIterator[bytes]:
        yield agent_service_pb2.DeliverRequest().SerializeToString()
        yield b"\xff\xff"

    async with open_control_channel(target) as channel:
        call = channel.stream_stream(
            "/hyperfactory.v1.AgentService/Deliver",
            response_deserializer=agent_service_pb2.DeliverResponse.FromString,
        )(messages(), timeout=CALL_MAX_S)
        error = await failure(drain(call))
    assert isinstance(error, errors.Invalid)


async def test_streams_of_requests_and_answers_flow(world: Any, agent: Any, trusted: Any) -> None:
    target = await world.serve(agent(world), tls=False, trusted_caller=trusted, validator=None)
    async with open_control_channel(target) as channel:
        call = agent_service_pb2_grpc.AgentServiceStub(channel).Deliver(timeout=CALL_MAX_S)
        for _ in range(3):
            await call.write(agent_service_pb2.DeliverRequest())
            assert await call.read() is not grpc.aio.EOF
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_denied_stream_is_denied_before_its_first_message(world: Any, agent: Any) -> None:
    me = world.agent("c1", "coder")
    target = await world.serve(agent(world), lambda: me)
    channel = await world.dial(target, world.agent(), "coder.crew-c1.svc")
    call = agent_service_pb2_grpc.AgentServiceStub(channel).Deliver(timeout=CALL_MAX_S)
    assert isinstance(await failure(call.read()), errors.Denied)


async def test_calls_are_counted_by_method_and_code(world: Any, factory: Any) -> None:
    seen: list[tuple[str, str]] = []

    class Counting:
        def observe(self, method: str, code: str, seconds: float) -> None:
            assert seconds >= 0
            seen.append((method.rsplit("/", 1)[1], code))

    channel = await dialed(world, factory, metrics=Counting())
    stub = stubs.FactoryServiceStub(channel)
    await stub.GetAgent(REQUEST, timeout=CALL_MAX_S)
    await drain(stub.WatchAgents(pb.WatchAgentsRequest(), timeout=CALL_MAX_S))
    await failure(stub.GetAgent(pb.GetAgentRequest(), timeout=CALL_MAX_S))
    assert seen == [("GetAgent", "OK"), ("WatchAgents", "OK"), ("GetAgent", "INVALID_ARGUMENT")]
