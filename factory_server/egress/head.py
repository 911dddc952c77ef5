"""Read one proxy request: strictly, within a bound and a deadline, and say what is wrong with it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final

from factory_server.egress.limits import HEAD_MAX_BYTES, HEADERS_MAX

_REQUEST: Final = re.compile(rb"([A-Z]{1,16}) ([^\x00-\x20\x7f]{1,2048}) HTTP/1\.[01]")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_END: Final = b"\r\n\r\n"
_BODIES: Final = frozenset({b"content-length", b"transfer-encoding"})

PHRASES: Final = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    405: "INVALID_ARGUMENT",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    502: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Statuses that we answer, and what the audit log calls them."""


class Denial(Exception):
    """The request is not carried out. The message reaches the client: it must not repeat the client's bytes."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def outcome(self) -> str:
        """As in the audit log."""
        return PHRASES[self.status]


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed CONNECT."""

    authority: str


async def read_request(reader: asyncio.StreamReader, deadline_s: float) -> Request | None:
    """The request; None where the client left before it was whole. Raises Denial."""
    try:
        async with asyncio.timeout(deadline_s):
            head = await reader.readuntil(_END)
    except TimeoutError as error:
        raise Denial(408, "REQUEST_TIMEOUT", "the request did not arrive in time") from error
    except asyncio.LimitOverrunError as error:
        raise Denial(431, "REQUEST_TOO_LARGE", "the request is too large") from error
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    if len(head) > HEAD_MAX_BYTES:
        raise Denial(431, "REQUEST_TOO_LARGE", "the request is too large")
    return parse_request(head)


def parse_request(head: bytes) -> Request:
    """Read a whole head, blank line included. Raises Denial."""
    first, *headers = head.removesuffix(_END).split(b"\r\n")
    line = _REQUEST.fullmatch(first)
    if line is None:
        raise Denial(400, "REQUEST_MALFORMED", "this is no HTTP/1.1 request")
    if line[1] != b"CONNECT":
        raise Denial(405, "METHOD_NOT_ALLOWED", "only CONNECT is offered here: use https")
    if len(headers) > HEADERS_MAX:
        raise Denial(431, "REQUEST_TOO_LARGE", "the request has too many headers")
    for header in headers:
        found = _HEADER.fullmatch(header)
        # A body would leave it open where the request ends and the tunnel begins.
        if found is None or found[1].lower() in _BODIES:
            raise Denial(400, "REQUEST_MALFORMED", "the request has a header that is refused")
    try:
        return Request(line[2].decode())
    except UnicodeDecodeError as error:
        raise Denial(400, "TARGET_MALFORMED", "the target is no text") from error


def accepted() -> bytes:
    """The answer to a request that is carried out."""
    return b"HTTP/1.1 200 Connection established\r\n\r\n"


def refused(denial: Denial) -> bytes:
    """The answer to any other. Clients show the status line only, so the message stands there."""
    body = f"{denial.reason}: {denial.message}\n".encode("ascii")
    lines = [
        f"HTTP/1.1 {denial.status} {denial.message}",
        *(["Allow: CONNECT"] if denial.status == 405 else []),
        "Content-Type: text/plain",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode("ascii") + _END + body
