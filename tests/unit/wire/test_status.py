"""The error table is total, goes both ways, and fits into trailers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hyperfactory.v1 import types_pb2
from wire import errors
from wire.errors import FactoryError, FieldViolation
from wire.status import CODES, DETAILS_KEY, code_of, from_rpc_error, from_status, to_status

REASONS = {name.removeprefix("ERROR_REASON_") for name in types_pb2.ErrorReason.keys()}  # noqa: SIM118


def subclasses(kind: type[FactoryError]) -> Iterator[type[FactoryError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


OURS = [kind for kind in subclasses(FactoryError) if kind.__module__ == "wire.errors"]


def nearest(kind: type[FactoryError]) -> type[FactoryError]:
    """The class that has a code: a narrower one arrives as that, with a reason of its own."""
    return next(above for above in kind.__mro__ if above in CODES)


def rpc_error(status: status_pb2.Status, trailers: list[tuple[str, Any]] | None = None) -> Any:
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    if trailers is None:
        trailers = [(DETAILS_KEY, status.SerializeToString())]
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=status.message
    )


@pytest.mark.parametrize("kind", OURS)
def test_each_error_has_a_row_of_its_own_and_a_reason_of_the_contract(kind: type[FactoryError]) -> None:
    assert nearest(kind) is kind or kind("x").reason != nearest(kind)("x").reason
    assert kind("x").reason in REASONS


def test_no_two_errors_share_a_code() -> None:
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("kind", OURS)
def test_each_error_survives_the_wire(kind: type[FactoryError]) -> None:
    error = kind("cannot do 'x': it is gone", metadata={"state": "gone"})
    arrived = from_rpc_error(rpc_error(to_status(error)))
    assert type(arrived) is nearest(kind)
    assert arrived.__dict__ == error.__dict__ | {"metadata": {"state": "gone"}}


def test_violations_survive_the_wire() -> None:
    violations = [FieldViolation("manifest.members[0].name", "is no DNS label", "string.pattern")]
    arrived = from_status(to_status(errors.Invalid("bad", violations=violations)))
    assert isinstance(arrived, errors.Invalid)
    assert list(arrived.violations) == violations


def test_an_error_that_a_floor_above_derives_has_its_parents_code() -> None:
    @dataclass(eq=False)
    class Deeper(errors.Stale):
        """As core may define one."""

    assert code_of(Deeper("x")) is grpc.StatusCode.ABORTED
    assert code_of(FactoryError("x")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("error", "details"),
    [
        (errors.Invalid("x", violations=[FieldViolation("a", "b")]), ["ErrorInfo", "BadRequest"]),
        (errors.NotFound("x", resource_name="y"), ["ErrorInfo", "ResourceInfo"]),
        (errors.Refused("x"), ["ErrorInfo", "PreconditionFailure"]),
        (errors.Exhausted("x"), ["ErrorInfo", "QuotaFailure", "RetryInfo"]),
        (errors.Unavailable("x"), ["ErrorInfo", "RetryInfo"]),
        (errors.Denied("x"), ["ErrorInfo"]),
    ],
)
def test_each_code_carries_the_details_of_the_contract(error: FactoryError, details: list[str]) -> None:
    assert [detail.TypeName().rsplit(".", 1)[1] for detail in to_status(error).details] == details


@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_a_status_always_fits_into_trailers(letter: str) -> None:
    error = errors.Invalid(
        letter * 10_000,
        metadata={"state": letter * 10_000},
        violations=[FieldViolation(letter * 1000, letter * 1000, letter * 1000)] * 500,
    )
    status = to_status(error)
    escaped = 3 * len(status.message.encode()) + 4 * status.ByteSize() / 3
    assert escaped < 8000
    arrived = from_status(status)
    assert arrived.reason == "FIELD_INVALID"
    assert isinstance(arrived, errors.Invalid)
    assert arrived.violations


@pytest.mark.parametrize("raw", [b"", b"\xff\xff", b"\x08\x05"])
def test_details_that_are_broken_or_of_another_code_are_passed_over(raw: bytes) -> None:
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="connection refused")
    arrived = from_rpc_error(rpc_error(status, [(DETAILS_KEY, raw)]))
    assert isinstance(arrived, errors.Unavailable)
    assert (arrived.message, arrived.reason) == ("connection refused", "DEPENDENCY_UNAVAILABLE")


def test_details_of_others_are_passed_over() -> None:
    status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="x")
    info = error_details_pb2.ErrorInfo(reason="THEIRS", domain="example.com")
    status.details.add().Pack(info)
    status.details.append(any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff"))
    status.details.append(any_pb2.Any(type_url="type.googleapis.com/a.B", value=b"\x01"))
    assert from_status(status).reason == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_of_a_peer_becomes_a_native_error(code: grpc.StatusCode) -> None:
    status = status_pb2.Status(code=code.value[0], message="x")
    assert isinstance(from_rpc_error(rpc_error(status, [])), FactoryError)


def test_a_limit_says_always_which_one_it_is() -> None:
    info = error_details_pb2.ErrorInfo()
    for error in (errors.Exhausted("x", quota="crews"), errors.Exhausted("x", metadata={"limit": "crews"})):
        to_status(error).details[0].Unpack(info)
        assert dict(info.metadata) == {"limit": "crews"}
    to_status(errors.Exhausted("x", "SUBSCRIBER_TOO_SLOW", {"cursor": "c"})).details[0].Unpack(info)
    assert dict(info.metadata) == {"cursor": "c"}
