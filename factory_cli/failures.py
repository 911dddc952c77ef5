"""Say what went wrong in one sentence with its fields, and as an exit code; never a traceback."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory_cli.output import Output


class Exit(IntEnum):
    """What the command's exit code says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    INVALID = 5
    DENIED = 6
    PRECONDITION = 7
    INTERRUPTED = 130


class CommandFailedError(Exception):
    """A command did not do what it was asked; the sentence says why."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


class NotConnectedError(CommandFailedError):
    """No server to talk to."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.UNAVAILABLE)


class UsageFailedError(CommandFailedError):
    """What was typed makes no sense, though the parser took it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, Exit.USAGE)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is shown."""

    code: Exit
    message: str
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: tuple[tuple[str, str], ...] = ()

    def show(self, out: Output) -> None:
        """Print it: to people on stderr; to programs as a JSON document on stdout."""
        out.note(f"error: {self.message}" + (f" [{self.reason}]" if self.reason else ""))
        for name, description in self.fields:
            out.note(f"  {name}: {description}")
        if out.as_json:
            out.line({"error": self.as_dict()})

    def as_dict(self) -> dict[str, Any]:
        """Write it for programs."""
        return {
            "exit": int(self.code),
            "message": self.message,
            "reason": self.reason,
            "metadata": self.metadata,
            "fields": [{"field": name, "description": description} for name, description in self.fields],
        }


def explain(error: BaseException) -> Failure | None:
    """Describe an expected error; None for a defect of ours."""
    if isinstance(error, BaseExceptionGroup):
        return explain(error.exceptions[0])
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return Failure(Exit.INTERRUPTED, "interrupted")
    if isinstance(error, BrokenPipeError):
        return Failure(Exit.OK, "")
    if isinstance(error, CommandFailedError):
        return Failure(error.code, str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(Exit.FAILED, f"cannot use '{error.filename}': {error.strerror}")
    return _explain_remote(error)


def defect(error: BaseException) -> Failure:
    """Describe what should not have happened."""
    what = f"{type(error).__name__}: {error}"
    return Failure(
        Exit.FAILED, f"this is a defect of ours ({what}); HYPERFACTORY_DEBUG=1 shows where", "DEFECT"
    )


def _explain_remote(error: BaseException) -> Failure | None:
    """Describe an error of the wire, or one of the native errors."""
    import grpc

    from wire import errors, status

    if isinstance(error, grpc.aio.AioRpcError):
        error = status.from_rpc_error(error)
    if not isinstance(error, errors.FactoryError):
        return None
    violations = error.violations if isinstance(error, errors.Invalid) else ()
    return Failure(
        code=_exit_code(error),
        message=error.message,
        reason=error.reason,
        metadata=dict(error.metadata),
        fields=tuple((violation.field, violation.description) for violation in violations),
    )


def _exit_code(error: BaseException) -> Exit:
    from wire import errors

    table: dict[type[errors.FactoryError], Exit] = {
        errors.Invalid: Exit.INVALID,
        errors.OutOfRange: Exit.INVALID,
        errors.NotFound: Exit.NOT_FOUND,
        errors.Unauthenticated: Exit.DENIED,
        errors.Denied: Exit.DENIED,
        errors.Refused: Exit.PRECONDITION,
        errors.Stale: Exit.PRECONDITION,
        errors.AlreadyExists: Exit.PRECONDITION,
        errors.Unavailable: Exit.UNAVAILABLE,
        errors.DeadlineExceeded: Exit.UNAVAILABLE,
    }
    return next((code for kind, code in table.items() if isinstance(error, kind)), Exit.FAILED)
