"""Errors as HTTP sees them: a `google.rpc.Status` in JSON under the HTTP code that its code maps to."""

from __future__ import annotations

import json
from typing import Any, Final

import grpc
import grpc.aio
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2

from wire import errors
from wire.errors import FactoryError
from wire.status import to_status

JSON: Final = "application/json"

# As google/rpc/code.proto says.
HTTP_CODES: Final[dict[grpc.StatusCode, int]] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
}
_BY_NUMBER: Final = {code.value[0]: http for code, http in HTTP_CODES.items()}

# What HTTP itself refuses, in our words; the HTTP code stays.
_NATIVE: Final[dict[int, type[FactoryError]]] = {
    404: errors.NotFound,
    405: errors.NotFound,
    408: errors.DeadlineExceeded,
    413: errors.Exhausted,
    431: errors.Exhausted,
    500: errors.Internal,
    503: errors.Unavailable,
}


class Aborted(grpc.aio.AbortError):
    """The guard has ended the call with this status."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


def as_json(status: status_pb2.Status) -> dict[str, Any]:
    """A status as a JSON document."""
    document: dict[str, Any] = MessageToDict(status, always_print_fields_with_no_presence=True)
    return document


def http_code(status: status_pb2.Status) -> int:
    """The HTTP code of a status."""
    return _BY_NUMBER.get(status.code, 500)


def response(status: status_pb2.Status, http: int = 0) -> web.Response:
    """The answer for a status; `http` where the code is not the status's own."""
    code = http or http_code(status)
    body = json.dumps(as_json(status)).encode()
    answer = web.Response(status=code, body=body, content_type=JSON)
    if code == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="hyperfactory"'
    wait_s = _retry_after_s(status)
    if wait_s and code in (429, 503):
        answer.headers["Retry-After"] = str(wait_s)
    return answer


def refusal(http: int, message: str) -> web.Response:
    """The answer to what HTTP itself refuses."""
    kind = _NATIVE.get(http)
    error = kind(message) if kind is not None else errors.Invalid(message, reason="MALFORMED_MESSAGE")
    return response(to_status(error), http)


def unserved(verb: str, error: web.HTTPException) -> web.Response:
    """The answer to what the router refuses: a path or, with `Allow`, a verb that nobody serves."""
    allowed = error.headers.get("Allow", "")
    if not allowed:
        known = {404: "nothing is served at this path; /openapi.json lists what is"}
        return refusal(error.status, known.get(error.status, error.reason))
    answer = refusal(error.status, f"{verb} is not served at this path, {allowed.replace(',', ', ')} is")
    answer.headers["Allow"] = allowed
    return answer


def _retry_after_s(status: status_pb2.Status) -> int:
    for detail in status.details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info = error_details_pb2.RetryInfo.FromString(detail.value)
            return max(1, -(-int(info.retry_delay.ToMilliseconds()) // 1000))
    return 0
