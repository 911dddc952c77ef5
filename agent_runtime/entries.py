"""What travels on the bus: topic entries, context values and their log, in JSON."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from agent_runtime.limits import VALUE_MAX_BYTES
from agent_runtime.resp import Reply
from wire.errors import Exhausted, FieldViolation, Invalid

NAME_RE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
KEY_MAX_CHARS: Final = 256


class Message(NamedTuple):
    """One entry of a topic; `id` rises and serves as a cursor."""

    id: str
    sender: str
    data: Any


class Versioned(NamedTuple):
    """A value of the shared context and its version; version 0 means that there is none."""

    value: Any
    version: int


class Change(NamedTuple):
    """One write to the shared context, by whom (a SPIFFE path)."""

    key: str
    value: Any
    version: int
    actor: str


def items(reply: Reply) -> list[Reply]:
    return reply if isinstance(reply, list) else []


def text(reply: Reply) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply or "")


def entry_id(entry: Reply) -> str:
    return text(items(entry)[0])


def fields(entry: Reply) -> dict[str, str]:
    flat = [text(item) for item in items(items(entry)[1])]
    return dict(zip(flat[::2], flat[1::2], strict=False))


def message(entry: Reply) -> Message:
    found = fields(entry)
    return Message(entry_id(entry), found.get("from", ""), decode(found.get("data", "")))


def spoken(reply: Reply) -> Message:
    _, _, raw = (*items(reply), None, None, None)[:3]
    said = decode(text(raw))
    if isinstance(said, dict) and "data" in said:
        return Message("", str(said.get("from", "")), said["data"])
    return Message("", "", said)


def change(entry: Reply) -> Change:
    found = fields(entry)
    version = int(found.get("version", "0"))
    return Change(found.get("key", ""), decode(found.get("value", "")), version, found.get("actor", ""))


def stored(reply: Reply) -> tuple[Versioned, int]:
    """A context value as callers see it, and the version that the next write follows.

    A removed key shows version 0 but keeps its number, so that versions never repeat.
    """
    if reply is None:
        return Versioned(None, 0), 0
    found = json.loads(text(reply))
    number = int(found["n"])
    return Versioned(found.get("v"), number if "v" in found else 0), number


def to_store(value: str | None, version: int) -> str:
    """A context value in the form that the factory's side of the bus shares."""
    return f'{{"n": {version}}}' if value is None else f'{{"v": {value}, "n": {version}}}'


def decode(text: str) -> Any:
    """JSON, or the text itself where another writer put something else."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text


def encode(value: Any) -> str:
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid(f"cannot put this on the bus: {error}") from error
    if len(text) > VALUE_MAX_BYTES:
        raise Exhausted("cannot put more than 256 KiB on the bus", quota="bus message bytes")
    return text


def name(name: str) -> str:
    if not NAME_RE.fullmatch(name):
        raise Invalid(f"no name for a topic or channel: '{name[:80]}'")
    return name


def check_key(key: str) -> None:
    if not 1 <= len(key) <= KEY_MAX_CHARS:
        violation = FieldViolation("key", f"must have 1 to {KEY_MAX_CHARS} characters")
        raise Invalid("context key is empty or too long", violations=[violation])
