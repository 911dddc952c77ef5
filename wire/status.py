"""The one table between native errors and gRPC statuses with details, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, Protocol

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from wire import errors
from wire.errors import FactoryError, FieldViolation

DOMAIN: Final = "hyperfactory.v1"
DETAILS_KEY: Final = "grpc-status-details-bin"

# Message and details travel in trailers (escaped, or in base64), and a peer takes 8 KiB of those in all.
MESSAGE_MAX_BYTES: Final = 512
DETAILS_MAX_BYTES: Final = 3072
TEXT_MAX_BYTES: Final = 200
VIOLATIONS_MAX: Final = 20

CODES: Final[dict[type[FactoryError], grpc.StatusCode]] = {
    errors.Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Refused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Stale: grpc.StatusCode.ABORTED,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.AgentCodeFailed: grpc.StatusCode.UNKNOWN,
    errors.Internal: grpc.StatusCode.INTERNAL,
}
_CLASSES: Final = {code: kind for kind, code in CODES.items()}
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


class AbortContext(Protocol):
    """What `abort` needs of a servicer's context."""

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[tuple[str, str | bytes], ...]
    ) -> NoReturn: ...


def code_of(error: FactoryError) -> grpc.StatusCode:
    """The gRPC code of an error: its class's, or that of the nearest class above it in the table."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.INTERNAL


def to_status(error: FactoryError) -> status_pb2.Status:
    """The status of an error, with ErrorInfo always and the details its code calls for, cut to what fits."""
    status = status_pb2.Status(code=code_of(error).value[0], message=_cut(error.message, MESSAGE_MAX_BYTES))
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={key: _cut(value) for key, value in _metadata(error).items()},
        )
    )
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() <= DETAILS_MAX_BYTES:
            status.details.append(packed)
    return status


def _metadata(error: FactoryError) -> Mapping[str, str]:
    """Its own, and of a limit always which one it is."""
    if isinstance(error, errors.Exhausted) and error.reason == "LIMIT_REACHED" and error.quota:
        return {"limit": error.quota, **error.metadata}
    return error.metadata


def _cut(text: str, limit: int = TEXT_MAX_BYTES) -> str:
    return text.encode(errors="replace")[:limit].decode(errors="ignore")


def _details(error: FactoryError) -> list[Message]:
    match error:
        case errors.Invalid(violations=violations) if violations:
            return [_bad_request(error)]
        case errors.NotFound():
            return [
                error_details_pb2.ResourceInfo(
                    resource_type=error.resource_type,
                    resource_name=error.resource_name,
                    description=_cut(error.message),
                )
            ]
        case errors.Refused():
            violation = error_details_pb2.PreconditionFailure.Violation(
                type=error.reason, description=_cut(error.message)
            )
            return [error_details_pb2.PreconditionFailure(violations=[violation])]
        case errors.Exhausted():
            quota = error_details_pb2.QuotaFailure.Violation(
                subject=error.quota, description=_cut(error.message)
            )
            return [error_details_pb2.QuotaFailure(violations=[quota]), _retry(error.retry_after_s)]
        case errors.Unavailable():
            return [_retry(error.retry_after_s)]
        case _:
            return []


def _bad_request(error: errors.Invalid) -> error_details_pb2.BadRequest:
    """As many violations as fit: one is enough to go on with."""
    bad = error_details_pb2.BadRequest()
    for violation in error.violations[:VIOLATIONS_MAX]:
        entry = bad.field_violations.add(
            field=_cut(violation.field),
            description=_cut(violation.description),
            reason=_cut(violation.reason),
        )
        if bad.ByteSize() > DETAILS_MAX_BYTES // 2:
            bad.field_violations.remove(entry)
            break
    return bad


def _retry(after_s: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(round(after_s * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


async def abort(context: AbortContext, error: FactoryError) -> NoReturn:
    """End the call with the error's status."""
    status = to_status(error)
    await context.abort(_BY_NUMBER[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))
    raise error  # abort() always raises; this line is for the type checker


def from_status(status: status_pb2.Status) -> FactoryError:
    """The native error of a status."""
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    error = _CLASSES.get(code, errors.Internal)(status.message)
    for detail in status.details:
        _take(error, detail)
    return error


def from_rpc_error(error: grpc.aio.AioRpcError) -> FactoryError:
    """The native error of a failed call: reason, metadata and violations decoded where the peer sent them."""
    code = error.code()
    if code is grpc.StatusCode.CANCELLED:
        return errors.Unavailable(f"call was cancelled: {error.details() or ''}")
    status = status_pb2.Status(code=code.value[0], message=error.details() or code.name)
    trailers: Any = error.trailing_metadata()
    for key, value in trailers or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            _merge_details(status, value)
    return from_status(status)


def _merge_details(status: status_pb2.Status, raw: bytes) -> None:
    try:
        sent = status_pb2.Status.FromString(raw)
    except DecodeError:
        return  # the code and the message still tell what happened
    # A proxy may have changed the code on the way; details of another code would mislead.
    if sent.code == status.code:
        status.details.extend(sent.details)


def _take_info(error: FactoryError, info: error_details_pb2.ErrorInfo) -> None:
    if info.domain == DOMAIN:
        error.reason = info.reason
        error.metadata = dict(info.metadata)


def _take_bad_request(error: FactoryError, bad: error_details_pb2.BadRequest) -> None:
    if isinstance(error, errors.Invalid):
        error.violations = [FieldViolation(v.field, v.description, v.reason) for v in bad.field_violations]


def _take_resource(error: FactoryError, info: error_details_pb2.ResourceInfo) -> None:
    if isinstance(error, errors.NotFound):
        error.resource_type, error.resource_name = info.resource_type, info.resource_name


def _take_quota(error: FactoryError, quota: error_details_pb2.QuotaFailure) -> None:
    if isinstance(error, errors.Exhausted) and quota.violations:
        error.quota = quota.violations[0].subject


def _take_retry(error: FactoryError, retry: error_details_pb2.RetryInfo) -> None:
    if isinstance(error, errors.Exhausted | errors.Unavailable):
        error.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000


_TAKERS: Final[tuple[tuple[type[Message], Callable[..., None]], ...]] = (
    (error_details_pb2.ErrorInfo, _take_info),
    (error_details_pb2.BadRequest, _take_bad_request),
    (error_details_pb2.ResourceInfo, _take_resource),
    (error_details_pb2.QuotaFailure, _take_quota),
    (error_details_pb2.RetryInfo, _take_retry),
)


def _take(error: FactoryError, detail: any_pb2.Any) -> None:
    for kind, taker in _TAKERS:
        if detail.TypeName() != kind.DESCRIPTOR.full_name:
            continue
        try:
            message = kind.FromString(detail.value)
        except DecodeError:
            return  # the code and the message still tell what happened
        taker(error, message)
