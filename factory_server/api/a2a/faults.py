"""What A2A calls its errors: ErrorInfo of its own domain, by which its clients tell them apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from functools import wraps
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from factory_server.core.errors import Invalid
from wire.status import DETAILS_KEY, VIOLATIONS_MAX

DOMAIN: Final = "a2a-protocol.org"
VERSION_KEY: Final = "a2a-version"
SERVED: Final = "1.0"
UNSAID: Final = "0.3"
"""What a caller speaks who names no version, as the specification says."""
SHOWN_CHARS: Final = 64
THEIRS: Final = {"input": "message.parts"}
"""What a field of ours is called in their requests."""

S = TypeVar("S")
R = TypeVar("R")
A = TypeVar("A")


class Fault(Enum):
    """A reason, as the specification writes it."""

    TASK_NOT_FOUND = "TASK_NOT_FOUND"
    TASK_NOT_CANCELABLE = "TASK_NOT_CANCELABLE"
    PUSH_NOTIFICATION_NOT_SUPPORTED = "PUSH_NOTIFICATION_NOT_SUPPORTED"
    UNSUPPORTED_OPERATION = "UNSUPPORTED_OPERATION"
    VERSION_NOT_SUPPORTED = "VERSION_NOT_SUPPORTED"
    CONTENT_TYPE_NOT_SUPPORTED = "CONTENT_TYPE_NOT_SUPPORTED"
    INVALID_PARAMS = "INVALID_PARAMS"


_CODES: Final = {
    Fault.TASK_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Fault.CONTENT_TYPE_NOT_SUPPORTED: grpc.StatusCode.INVALID_ARGUMENT,
    Fault.INVALID_PARAMS: grpc.StatusCode.INVALID_ARGUMENT,
}


async def refuse(
    context: Any, fault: Fault, message: str, *, wrong: Invalid | None = None, **metadata: str
) -> NoReturn:
    """End the call with this fault; `wrong` adds what is wrong with which field."""
    code = _CODES.get(fault, grpc.StatusCode.FAILED_PRECONDITION)
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=fault.value, domain=DOMAIN, metadata=metadata)
    status.details.add().Pack(info)
    if wrong is not None:
        bad = error_details_pb2.BadRequest()
        for violation in wrong.violations[:VIOLATIONS_MAX]:
            field = THEIRS.get(violation.field, violation.field)
            bad.field_violations.add(field=field, description=violation.description)
        status.details.add().Pack(bad)
    await context.abort(code, message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("unreachable: abort raises")


async def check_version(context: Any) -> None:
    """Refuse a caller of another version than ours, but for the patch, which does not count."""
    said = [str(value) for name, value in context.invocation_metadata() or () if name == VERSION_KEY]
    version = (said[-1] if said else "") or UNSAID
    major, minor = [*version.split("."), "0"][:2]
    if f"{major}.{minor}" != SERVED:
        text = f"A2A {version[:SHOWN_CHARS]} is not served here: {SERVED} is"
        await refuse(context, Fault.VERSION_NOT_SUPPORTED, text, supported=SERVED)


def answered(method: Callable[[S, R, Any], Awaitable[A]]) -> Callable[[S, R, Any], Awaitable[A]]:
    """A method of one answer, behind the check of the version; a bad request in A2A's words."""

    @wraps(method)
    async def answer(self: S, request: R, context: Any) -> A:
        await check_version(context)
        try:
            return await method(self, request, context)
        except Invalid as error:
            await refuse(context, Fault.INVALID_PARAMS, error.message, wrong=error)

    return answer


def streamed(method: Callable[[S, R, Any], AsyncIterator[A]]) -> Callable[[S, R, Any], AsyncIterator[A]]:
    """The same for a method that streams."""

    @wraps(method)
    async def stream(self: S, request: R, context: Any) -> AsyncIterator[A]:
        await check_version(context)
        try:
            async for response in method(self, request, context):
                yield response
        except Invalid as error:
            await refuse(context, Fault.INVALID_PARAMS, error.message, wrong=error)

    return stream
