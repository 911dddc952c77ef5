"""What a request of A2A's must be like: each field that is not is named, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from factory_server.core.errors import FieldViolation, Invalid
from lf.a2a.v1 import a2a_pb2 as pb

IDENT_MAX_CHARS: Final = 256
AGENT_MAX_CHARS: Final = 64
PARTS_MAX: Final = 100
PAGE_MAX: Final = 100
MODES: Final = ("text/plain", "application/json")
"""What agents take and give."""

Found = Iterator[tuple[str, str, bool]]
"""Field, what it must be, whether it is."""


def require(request: Any, doing: str) -> None:
    """Invalid, with every field that is wrong."""
    wrong = [FieldViolation(field, must) for field, must, holds in _checks(request) if not holds]
    if wrong:
        raise Invalid(f"cannot {doing}: {wrong[0].field} {wrong[0].description}", violations=wrong)


def _checks(request: Any) -> Found:
    known = 1 <= len(request.tenant) <= AGENT_MAX_CHARS
    yield "tenant", f"must have 1 to {AGENT_MAX_CHARS} characters: the agent's id", known
    match request:
        case pb.SendMessageRequest():
            yield from _message(request.message)
            yield from _history("configuration.history_length", request.configuration)
        case pb.ListTasksRequest():
            yield from _history("history_length", request)
            size = request.page_size if request.HasField("page_size") else 1
            yield "page_size", f"must be 1 to {PAGE_MAX}", 1 <= size <= PAGE_MAX
            yield "status", "must be one of TaskState", request.status in pb.TaskState.values()
            since = request.status_timestamp_after
            yield "status_timestamp_after", "must be a time", 0 <= since.nanos < 1_000_000_000
        case pb.GetTaskRequest():
            yield from _history("history_length", request)
            yield _ident("id", request.id)
        case pb.CancelTaskRequest() | pb.SubscribeToTaskRequest():
            yield _ident("id", request.id)
        case _:
            return


def _message(message: pb.Message) -> Found:
    yield _ident("message.message_id", message.message_id)
    for name in ("context_id", "task_id"):
        short = len(getattr(message, name)) <= IDENT_MAX_CHARS
        yield f"message.{name}", f"must have at most {IDENT_MAX_CHARS} characters", short
    yield "message.role", "must be ROLE_USER", message.role == pb.ROLE_USER
    yield "message.parts", f"must have 1 to {PARTS_MAX} parts", 1 <= len(message.parts) <= PARTS_MAX
    for number, part in enumerate(message.parts[:PARTS_MAX]):
        full = part.WhichOneof("content") is not None
        yield f"message.parts[{number}]", "must have a content: text or data", full


def _ident(name: str, value: str) -> tuple[str, str, bool]:
    return name, f"must have 1 to {IDENT_MAX_CHARS} characters", 1 <= len(value) <= IDENT_MAX_CHARS


def _history(name: str, request: Any) -> Found:
    yield name, "must not be negative", request.history_length >= 0


def readable(message: pb.Message) -> bool:
    """Whether the message has content that an agent's task can take: text, and objects."""
    return all(map(_readable, message.parts))


def _readable(part: pb.Part) -> bool:
    kind = part.media_type.partition(";")[0].strip().lower()
    if part.WhichOneof("content") == "text":
        return not kind or kind.startswith("text/")
    is_json = not kind or kind == "application/json" or kind.endswith("+json")
    return part.data.WhichOneof("kind") == "struct_value" and is_json


def welcome(accepted: Any) -> bool:
    """Whether the caller takes what agents give; one that names nothing takes everything."""
    kinds = {str(mode).partition(";")[0].strip().lower() for mode in accepted}
    return not kinds or any({mode, mode.split("/")[0] + "/*", "*/*"} & kinds for mode in MODES)
