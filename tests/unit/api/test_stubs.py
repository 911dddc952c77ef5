"""Stubs of a plain, synchronous client say what the contract says; grpcio-testing plays the server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc_testing
import pytest

from hyperfactory.v1 import crew_service_pb2, crew_service_pb2_grpc, events_pb2

CREWS = crew_service_pb2.DESCRIPTOR.services_by_name["CrewService"]
WITHIN_S = 5.0


@pytest.fixture
def channel():
    """A channel whose far end is this test."""
    return grpc_testing.channel([CREWS], grpc_testing.strict_real_time())


def test_a_refusal_reaches_the_caller_with_its_code(channel):
    stub = crew_service_pb2_grpc.CrewServiceStub(channel)
    with ThreadPoolExecutor(1) as pool:
        request = crew_service_pb2.GetCrewRequest(crew="c1")
        answer = pool.submit(lambda: stub.GetCrew(request, timeout=WITHIN_S))
        _, seen, call = channel.take_unary_unary(CREWS.methods_by_name["GetCrew"])
        call.terminate(None, (), grpc.StatusCode.NOT_FOUND, "no such crew")
        with pytest.raises(grpc.RpcError) as refused:
            answer.result(WITHIN_S)
    assert seen == request
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_receipts_stream_until_the_summary(channel):
    stub = crew_service_pb2_grpc.CrewServiceStub(channel)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            lambda: list(stub.Broadcast(crew_service_pb2.BroadcastRequest(crew="c1", signal="PING")))
        )
        _, seen, call = channel.take_unary_stream(CREWS.methods_by_name["Broadcast"])
        call.send_initial_metadata(())
        receipt = events_pb2.Receipt(agent="a1", stage=events_pb2.RECEIPT_STAGE_ACKED)
        sent = [
            crew_service_pb2.BroadcastResponse(receipts=[receipt]),
            crew_service_pb2.BroadcastResponse(completed=crew_service_pb2.BroadcastSummary(targets=1)),
        ]
        for response in sent:
            call.send_response(response)
        call.terminate((), grpc.StatusCode.OK, "")
        assert answer.result(WITHIN_S) == sent
    assert seen.signal == "PING"


class Async(crew_service_pb2_grpc.CrewServiceServicer):
    """A servicer as ours are."""

    async def GetCrew(self, request, context):  # noqa: N802 - the contract's name
        raise AssertionError("never awaited")


def test_its_server_must_not_judge_our_servicers():
    """It takes a coroutine that nobody awaited for an answer: a green that means nothing. So ours are tested on
    a real server, and this test tells when that has changed."""
    server = grpc_testing.server_from_dictionary({CREWS: Async()}, grpc_testing.strict_real_time())
    call = server.invoke_unary_unary(
        CREWS.methods_by_name["GetCrew"], (), crew_service_pb2.GetCrewRequest(), WITHIN_S
    )
    answer, _, code, _ = call.termination()
    assert code is grpc.StatusCode.OK
    answer.close()
