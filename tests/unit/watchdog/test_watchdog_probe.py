"""How answers and failures of a probe are read: silence is a miss, anything said is a sign of life."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from watchdog.judge import Outcome
from watchdog.probe import read_answer, read_error

SILENT = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def failure(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_only_silence_is_a_miss(code: grpc.StatusCode) -> None:
    outcome, evidence = read_error(failure(code))
    assert outcome is (Outcome.MISSED if code in SILENT else Outcome.UNWELL)
    assert code.name in evidence


def test_a_certificate_that_is_not_accepted_is_no_death() -> None:
    details = "Ssl handshake failed: SSL_ERROR_SSL: OPENSSL_internal:CERTIFICATE_VERIFY_FAILED"
    assert read_error(failure(grpc.StatusCode.UNAVAILABLE, details))[0] is Outcome.UNWELL


@pytest.mark.parametrize("status", [*HealthCheckResponse.ServingStatus.values(), 77])
def test_only_serving_is_serving(status: int) -> None:
    answer = HealthCheckResponse.FromString(bytes([8, status]))
    outcome, evidence = read_answer(answer)
    assert (outcome is Outcome.SERVING) == (status == HealthCheckResponse.SERVING)
    assert bool(evidence) == (outcome is Outcome.UNWELL)
