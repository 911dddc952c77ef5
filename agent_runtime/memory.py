"""An agent's memory: bounded keys and values, and the checksummed blob that carries them into hibernation."""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from agent_runtime.limits import (
    MEMORY_KEY_MAX_CHARS,
    MEMORY_KEYS_MAX,
    MEMORY_MAX_BYTES,
    STATE_MAX_BYTES,
    VALUE_MAX_BYTES,
)
from wire.errors import Exhausted, FieldViolation, Invalid

MAGIC: Final = b"HFSTATE2"
# Magic, lengths of the memory's JSON, of the conversations' and of the vectors; the profile's bytes follow.
_HEADER: Final = struct.Struct(">8sIII")
# As agents hibernated before: the memory's JSON, the profile's bytes.
EARLIER: Final = b"HFSTATE1"
_EARLIER_HEADER: Final = struct.Struct(">8sI")


class Memory:
    """Key/value memory of one agent. Values are JSON; each key and the whole are bounded."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        text = self._values.get(key)
        return default if text is None else json.loads(text)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def texts(self) -> Mapping[str, str]:
        """Every value as the JSON it is kept in, by key; to be read, not to be changed."""
        return self._values

    def put(self, key: str, value: Any) -> None:
        """Remember a JSON value. `Exhausted` when it, the number of keys or the whole is too large."""
        self._put_text(key, _encode(value))

    def _put_text(self, key: str, text: str) -> None:
        _check_key(key)
        size_bytes = len(text.encode())
        if size_bytes > VALUE_MAX_BYTES:
            raise Exhausted(f"cannot remember {size_bytes} bytes under one key", quota="memory value bytes")
        if key not in self._values and len(self._values) >= MEMORY_KEYS_MAX:
            raise Exhausted(f"cannot remember more than {MEMORY_KEYS_MAX} keys", quota="memory keys")
        grown_bytes = self._size_bytes - self._cost_bytes(key) + size_bytes + len(key.encode())
        if grown_bytes > MEMORY_MAX_BYTES:
            raise Exhausted("cannot remember more: the memory is full", quota="memory bytes")
        self._values[key] = text
        self._size_bytes = grown_bytes

    def forget(self, key: str) -> None:
        self._size_bytes -= self._cost_bytes(key)
        self._values.pop(key, None)

    def _cost_bytes(self, key: str) -> int:
        text = self._values.get(key)
        return 0 if text is None else len(text.encode()) + len(key.encode())

    def snapshot(self) -> bytes:
        return json.dumps(self._values, separators=(",", ":")).encode()

    def restore(self, snapshot: bytes) -> None:
        """Replace everything by a snapshot, whose values were checked when they were put."""
        fresh = Memory()
        for key, text in json.loads(snapshot).items():
            fresh._put_text(key, text)
        self._values, self._size_bytes = fresh._values, fresh._size_bytes


def _check_key(key: str) -> None:
    if not 1 <= len(key) <= MEMORY_KEY_MAX_CHARS:
        violation = FieldViolation("key", f"must have 1 to {MEMORY_KEY_MAX_CHARS} characters")
        raise Invalid("cannot remember: key is empty or too long", violations=[violation])


def _encode(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid(f"cannot remember the value: {error}") from error


class State(NamedTuple):
    """What hibernation keeps: the memory's snapshot, whatever the profile's code gave, what was said in which
    context, and the vectors of what is remembered."""

    memory: bytes
    profile: bytes = b""
    conversations: bytes = b""
    vectors: bytes = b""

    @property
    def room_bytes(self) -> int:
        """What a blob still takes."""
        return max(STATE_MAX_BYTES - _HEADER.size - sum(map(len, self)), 0)


class Blob(NamedTuple):
    """A packed state and its checksum."""

    data: bytes
    sha256: str


def pack(state: State) -> Blob:
    """Encode a state. `Exhausted` above the blob's limit."""
    kept = (state.memory, state.conversations, state.vectors)
    data = b"".join([_HEADER.pack(MAGIC, *map(len, kept)), *kept, state.profile])
    if len(data) > STATE_MAX_BYTES:
        raise Exhausted(f"cannot suspend: the state has {len(data)} bytes", quota="state bytes")
    return Blob(data, hashlib.sha256(data).hexdigest())


def unpack(blob: Blob) -> State:
    """Decode a state; `Invalid` where the checksum or the form is wrong."""
    if not hmac.compare_digest(hashlib.sha256(blob.data).hexdigest(), blob.sha256.lower()):
        raise _bad("sha256", "does not match the data")
    state = _earlier(blob.data) if blob.data.startswith(EARLIER) else _parts(blob.data)
    if not _is_snapshot(state.memory):
        raise _bad("data", "is cut or damaged")
    return state


def _parts(data: bytes) -> State:
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise _bad("data", "is no state of this runtime")
    _, *lengths = _HEADER.unpack_from(data)
    found, at = list[bytes](), _HEADER.size
    for length in lengths:
        found.append(data[at : at + length])
        at += length
    if at > len(data):
        raise _bad("data", "is cut or damaged")
    memory, conversations, vectors = found
    return State(memory, data[at:], conversations, vectors)


def _earlier(data: bytes) -> State:
    if len(data) < _EARLIER_HEADER.size:
        raise _bad("data", "is cut or damaged")
    _, length = _EARLIER_HEADER.unpack_from(data)
    body = data[_EARLIER_HEADER.size :]
    if length > len(body):
        raise _bad("data", "is cut or damaged")
    return State(body[:length], body[length:])


def _is_snapshot(data: bytes) -> bool:
    try:
        found = json.loads(data)
    except ValueError:
        return False
    return isinstance(found, Mapping) and all(isinstance(text, str) for text in found.values())


def _bad(field: str, description: str) -> Invalid:
    return Invalid(
        f"cannot resume: {field} {description}", violations=[FieldViolation(f"state.{field}", description)]
    )
