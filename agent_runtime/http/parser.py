"""Cut a byte stream into HTTP/1.1 requests, strictly: what two readers could read in two ways is refused."""

from __future__ import annotations

import re
from typing import Final

from agent_runtime.http.limits import BODY_MAX_BYTES, HEAD_MAX_BYTES, HEADERS_MAX
from agent_runtime.http.messages import HttpError, Request

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET: Final = re.compile(r"/[\x21-\x7e]*")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_DIGITS: Final = re.compile(r"[0-9]{1,12}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]*)?")
_CHUNK_LINE_MAX_BYTES: Final = 256
# Twice in a request, these would let one reader see another request than the next.
_ONCE: Final = frozenset({"host", "content-length", "transfer-encoding", "origin", "content-type"})


class Parser:
    """Takes bytes as they come; `next` gives a request as soon as it is whole."""

    def __init__(self, body_max_bytes: int = BODY_MAX_BYTES) -> None:
        self._buffer = bytearray()
        self._body_max_bytes = body_max_bytes
        self._head: Request | None = None
        self._length = 0
        self._chunks: bytearray | None = None

    def __len__(self) -> int:
        """How many bytes wait."""
        return len(self._buffer)

    @property
    def idle(self) -> bool:
        """Between two requests."""
        return self._head is None and not self._buffer

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Request | None:
        """The next request, or None until more has come; `HttpError` for what is none."""
        if self._head is None and not self._read_head():
            return None
        body = self._read_chunks() if self._chunks is not None else self._read_length()
        if body is None or self._head is None:
            return None
        found, self._head, self._chunks = self._head, None, None
        return Request(found.method, found.path, found.query, found.headers, body, found.keep_alive)

    def _read_head(self) -> bool:
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]  # old clients send one after a body
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end > HEAD_MAX_BYTES:
            if len(self._buffer) > HEAD_MAX_BYTES:
                raise HttpError(431, "the request's head is too large")
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        headers = _headers(lines[1:])
        self._head = _request(lines[0], headers)
        self._frame(headers)
        return True

    def _frame(self, headers: dict[str, str]) -> None:
        """How long the body is: said once and clearly, or not at all."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None:
            if length is not None:
                raise HttpError(400, "a body has either a length or chunks")
            if coding.lower() != "chunked":
                raise HttpError(501, "unknown transfer coding")
            self._chunks = bytearray()
            return
        if length is not None and not _DIGITS.fullmatch(length):
            raise HttpError(400, "the content length is no number")
        self._length = int(length or 0)
        if self._length > self._body_max_bytes:
            raise HttpError(413, f"a body may have {self._body_max_bytes} bytes")

    def _read_length(self) -> bytes | None:
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        return body

    def _read_chunks(self) -> bytes | None:
        while self._chunks is not None:
            end = self._buffer.find(b"\r\n")
            if end < 0 or end > _CHUNK_LINE_MAX_BYTES:
                if len(self._buffer) > _CHUNK_LINE_MAX_BYTES:
                    raise HttpError(400, "a chunk's size is no number")
                return None
            found = _CHUNK.fullmatch(self._buffer[:end])
            if not found:
                raise HttpError(400, "a chunk's size is no number")
            size = int(found[1], 16)
            if len(self._chunks) + size > self._body_max_bytes:
                raise HttpError(413, f"a body may have {self._body_max_bytes} bytes")
            if len(self._buffer) < end + 2 + size + 2:
                return None
            if self._buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                raise HttpError(400, "a chunk does not end where it said, or trailers follow")
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 4 + size]
            if not size:
                return bytes(self._chunks)
        return None


def _request(line: str, headers: dict[str, str]) -> Request:
    parts = line.split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise HttpError(400, "this is no request line")
    method, target, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpError(505, "only HTTP/1.1 is spoken here")
    if "host" not in headers and version == "HTTP/1.1":
        raise HttpError(400, "a request names its host")
    asked = headers.get("connection", "").lower()
    keep_alive = "close" not in asked if version == "HTTP/1.1" else "keep-alive" in asked
    path, _, query = target.partition("?")
    return Request(method, path, query, headers, keep_alive=keep_alive)


def _headers(lines: list[str]) -> dict[str, str]:
    if len(lines) > HEADERS_MAX:
        raise HttpError(431, f"a request may have {HEADERS_MAX} headers")
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise HttpError(400, "a header is malformed")
        name = name.lower()
        if name not in found:
            found[name] = value
        elif name in _ONCE or name.startswith(("mcp-", "x-hyperfactory-")):
            raise HttpError(400, f"header {name} came twice")
        else:
            found[name] += f", {value}"
    return found
