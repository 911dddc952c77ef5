"""What A2A calls its errors: ErrorInfo of its own domain, by which its clients tell them apart."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2

from wire.status import DETAILS_KEY

DOMAIN: Final = "a2a-protocol.org"
VERSION_KEY: Final = "a2a-version"
MAJOR: Final = "1"


class Fault(Enum):
    """A reason, as the specification writes it."""

    TASK_NOT_FOUND = "TASK_NOT_FOUND"
    TASK_NOT_CANCELABLE = "TASK_NOT_CANCELABLE"
    PUSH_NOTIFICATION_NOT_SUPPORTED = "PUSH_NOTIFICATION_NOT_SUPPORTED"
    UNSUPPORTED_OPERATION = "UNSUPPORTED_OPERATION"
    VERSION_NOT_SUPPORTED = "VERSION_NOT_SUPPORTED"
    CONTENT_TYPE_NOT_SUPPORTED = "CONTENT_TYPE_NOT_SUPPORTED"


_CODES: Final = {
    Fault.TASK_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Fault.CONTENT_TYPE_NOT_SUPPORTED: grpc.StatusCode.INVALID_ARGUMENT,
}


async def refuse(context: Any, fault: Fault, message: str) -> NoReturn:
    """End the call with this fault."""
    code = _CODES.get(fault, grpc.StatusCode.FAILED_PRECONDITION)
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=fault.value, domain=DOMAIN))
    await context.abort(code, message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("unreachable: abort raises")


async def check_version(context: Any) -> None:
    """Refuse a caller of another major version; one that names none speaks 0.3, as the specification says."""
    said = [str(value) for name, value in context.invocation_metadata() or () if name == VERSION_KEY]
    version = said[-1] if said else "0.3"
    if version.split(".")[0] != MAJOR:
        await refuse(context, Fault.VERSION_NOT_SUPPORTED, f"A2A {version[:20]} is not served here: 1.0 is")
