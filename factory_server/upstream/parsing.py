"""Cut a byte stream into an HTTP/1.1 answer, strictly: what is behind the socket may be anybody's code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from factory_server.upstream.limits import HEAD_MAX_BYTES, HEADERS_MAX, LINE_MAX_BYTES

Headers = Sequence[tuple[str, str]]
"""Names in lower case."""

_STATUS: Final = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]*)?")
_DIGITS: Final = re.compile(r"[0-9]{1,12}")
_BODILESS: Final = (204, 304)


class MalformedError(ValueError):
    """This is no HTTP answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins. Its body has a length, or chunks, or else lasts until the connection ends."""

    status: int
    headers: Headers
    length: int | None
    chunked: bool
    keep_alive: bool


class AnswerParser:
    """One answer: `feed` what comes, then take `head` and `pieces` until `ended`."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.ended = False
        self._buffer = bytearray()
        self._left = 0
        """Of the body, or of the chunk that is being read."""
        self._after_chunk = False

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the body that these bytes bring. MalformedError."""
        self._buffer += data
        if self.head is None and not self._read_head():
            return []
        assert self.head is not None
        if self.head.chunked:
            return self._read_chunks()
        if self.head.length is None:
            return self._take(len(self._buffer))
        taken = self._take(min(self._left, len(self._buffer)))
        self._left -= sum(map(len, taken))
        if self._left == 0:
            self._end()
        return taken

    def end_of_stream(self) -> None:
        """The connection ended: so does a body without a length. MalformedError for any other."""
        if self.head is not None and self.head.length is None and not self.head.chunked:
            self.ended = True
        if not self.ended:
            raise MalformedError("the answer broke off")

    def _take(self, count: int) -> list[bytes]:
        if not count:
            return []
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return [data]

    def _end(self) -> None:
        if self._buffer:
            raise MalformedError("there is more than the answer")
        self.ended = True

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n", 0, HEAD_MAX_BYTES + 4)
        if end < 0:
            if len(self._buffer) > HEAD_MAX_BYTES:
                raise MalformedError("the answer's head is too large")
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        self.head = _head(lines)
        self._left = self.head.length or 0
        return True

    def _read_chunks(self) -> list[bytes]:
        pieces: list[bytes] = []
        while self._buffer and not self.ended:
            if self._left:
                taken = self._take(min(self._left, len(self._buffer)))
                self._left -= len(taken[0])
                pieces += taken
                continue
            if not self._read_size():
                break
        return pieces

    def _read_size(self) -> bool:
        """The line between two chunks, and the end after the last; whether it has come."""
        start = 2 if self._after_chunk else 0
        end = self._buffer.find(b"\r\n", start, start + LINE_MAX_BYTES)
        if end < 0:
            if len(self._buffer) > start + LINE_MAX_BYTES:
                raise MalformedError("a chunk's size is no number")
            return False
        found = _SIZE.fullmatch(self._buffer[start:end])
        if found is None or (start and self._buffer[:2] != b"\r\n"):
            raise MalformedError("a chunk's size is no number")
        size = int(found[1], 16)
        if size == 0 and len(self._buffer) < end + 4:
            return False
        del self._buffer[: end + 2]
        if size == 0:
            if self._buffer[:2] != b"\r\n":
                raise MalformedError("an answer has no trailers")
            del self._buffer[:2]
            self._end()
        self._left, self._after_chunk = size, True
        return True


def _head(lines: list[str]) -> Head:
    status = _STATUS.fullmatch(lines[0])
    if status is None or len(lines) > HEADERS_MAX:
        raise MalformedError("this is no answer")
    if status[2].startswith("1"):
        raise MalformedError("an answer that is not the last")
    headers = []
    for line in lines[1:]:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise MalformedError("a header is none")
        headers.append((found[1].lower(), found[2]))
    said = dict(headers)
    chunked = "transfer-encoding" in said
    if chunked and (said["transfer-encoding"].lower() != "chunked" or "content-length" in said):
        raise MalformedError("an unknown transfer coding")
    length = 0 if int(status[2]) in _BODILESS else _length(headers)
    keep_alive = status[1] == "1" and said.get("connection", "").lower() != "close"
    keep_alive = keep_alive and (chunked or length is not None)
    return Head(int(status[2]), headers, length, chunked, keep_alive)


def _length(headers: Headers) -> int | None:
    lengths = {value for name, value in headers if name == "content-length"}
    if not lengths:
        return None
    if len(lengths) > 1 or not _DIGITS.fullmatch(length := lengths.pop()):
        raise MalformedError("the length is no number")
    return int(length)
