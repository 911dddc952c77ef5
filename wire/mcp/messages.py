"""JSON-RPC 2.0 messages: read from bytes, built, and framed for HTTP, event streams and byte streams."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import isinf
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from wire.mcp.errors import INVALID_REQUEST, PARSE_ERROR, McpError, bad_request

Id = str | int
Json = dict[str, Any]

METHOD_MAX_CHARS: Final = 256
ID_MAX_CHARS: Final = 1024
"""Of an id and of a token of progress: they come back with each message, and are kept while they may."""
NONE: Final[Mapping[str, Any]] = MappingProxyType({})
DEPTH_MAX: Final = 64  # deeper JSON is an attack on whoever walks it

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class Request(NamedTuple):
    """Someone wants an answer."""

    id: Id
    method: str
    params: Mapping[str, Any] = NONE

    @property
    def meta(self) -> Mapping[str, Any]:
        meta = self.params.get("_meta")
        return meta if isinstance(meta, Mapping) else {}


class Notification(NamedTuple):
    """Someone tells us."""

    method: str
    params: Mapping[str, Any] = NONE


class Response(NamedTuple):
    """The answer to a request of ours: either a result or an error."""

    id: Id | None
    result: Any = None
    error: Mapping[str, Any] | None = None


Message = Request | Notification | Response


def parse(data: bytes | str) -> Message:
    """The message in these bytes; `McpError` for what is none, with the id where it could be read."""
    return from_json(load(data))


def load(data: bytes | str) -> Any:
    """JSON, strictly: no NaN, no number beyond all bounds, no half of a character, no endless depth."""
    try:
        found = json.loads(data, parse_constant=_no_constant, parse_float=_finite)
        if _may_hold_halves(data):
            _encode(found).encode()
    except (ValueError, RecursionError) as error:
        raise bad_request(f"cannot read JSON: {error}"[:200], PARSE_ERROR) from None
    if _deeper_than(found, DEPTH_MAX):
        raise bad_request(f"JSON is more than {DEPTH_MAX} levels deep")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    """1e400 is a number in JSON and none in Python: whoever wrote it out again would write `Infinity`."""
    if isinf(number := float(digits)):
        raise ValueError(f"{digits[:40]} is beyond all numbers")
    return number


def _may_hold_halves(data: bytes | str) -> bool:
    """Whether there are escapes that may stand for half a pair: what is no text has many readings."""
    if isinstance(data, str):
        return "\\ud" in data or "\\uD" in data
    return b"\\ud" in data or b"\\uD" in data


def _deeper_than(value: Any, levels: int) -> bool:
    """Level by level, so that the look itself does not recurse."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def from_json(found: Any) -> Message:
    """The message that this JSON is."""
    if not isinstance(found, dict) or found.get("jsonrpc") != "2.0":
        raise bad_request("the body is no JSON-RPC 2.0 message")
    if "method" not in found:
        return _response(found)
    method, params = found["method"], found.get("params", {})
    if not isinstance(method, str) or not 0 < len(method) <= METHOD_MAX_CHARS:
        raise bad_request("a method is a name")
    if not isinstance(params, dict):
        raise bad_request("parameters are an object")
    if "id" not in found:
        return Notification(method, params)
    return Request(_id(found["id"]), method, params)


def _response(found: Json) -> Response:
    identifier = None if found.get("id") is None else _id(found["id"])
    if "result" in found and "error" not in found:
        return Response(identifier, result=found["result"])
    if isinstance(error := found.get("error"), dict) and "result" not in found:
        return Response(identifier, error=error)
    raise bad_request("the body is no JSON-RPC 2.0 message")


def _id(value: Any) -> Id:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise McpError(INVALID_REQUEST, "an id is a string or a whole number", status=400)
    if isinstance(value, str) and len(value) > ID_MAX_CHARS:
        raise McpError(INVALID_REQUEST, f"an id has at most {ID_MAX_CHARS} characters", status=400)
    return value


def id_in(data: bytes | str) -> Id | None:
    """The id in a message that was refused, so that the refusal finds its request."""
    try:
        return _id(json.loads(data)["id"])
    except (ValueError, RecursionError, LookupError, TypeError, McpError):
        return None


def request(identifier: Id, method: str, params: Mapping[str, Any] | None = None) -> Json:
    message: Json = {"jsonrpc": "2.0", "id": identifier, "method": method}
    return message if params is None else message | {"params": params}


def notification(method: str, params: Mapping[str, Any] | None = None) -> Json:
    message: Json = {"jsonrpc": "2.0", "method": method}
    return message if params is None else message | {"params": params}


def result(identifier: Id, value: Mapping[str, Any]) -> Json:
    return {"jsonrpc": "2.0", "id": identifier, "result": value}


def error(identifier: Id | None, wrong: McpError) -> Json:
    """An error response; without an id where none could be read."""
    said: Json = {"code": wrong.code, "message": wrong.message}
    if wrong.data is not None:
        said["data"] = wrong.data
    return {"jsonrpc": "2.0", "error": said} if identifier is None else _answer(identifier, said)


def _answer(identifier: Id, said: Json) -> Json:
    return {"jsonrpc": "2.0", "id": identifier, "error": said}


def encode(message: Mapping[str, Any]) -> bytes:
    """Bytes without a line break, fit for each framing. ValueError or TypeError for what is no JSON."""
    return _encode(message).encode("utf-8", "replace")


def event(message: Mapping[str, Any] | bytes) -> bytes:
    """A message, or its bytes, as a server-sent event."""
    data = message if isinstance(message, bytes) else encode(message)
    return b"event: message\ndata: " + data + b"\n\n"


def line(message: Mapping[str, Any]) -> bytes:
    """A message as stdio servers write it."""
    return encode(message) + b"\n"


class Lines:
    """Cuts a byte stream into lines of bounded length; what is longer is an error, not memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are whole now; `McpError` for one that does not end."""
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._take(part)
            if found := bytes(self._rest).strip():
                yield found
            self._rest.clear()
        self._take(rest)

    def _take(self, part: bytes) -> None:
        if len(self._rest) + len(part) > self._max_bytes:
            self._rest.clear()
            raise bad_request(f"a line has more than {self._max_bytes} bytes", PARSE_ERROR)
        self._rest += part
