"""Requests and responses as handlers see them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

JSON_TYPE: Final = "application/json"
EVENTS_TYPE: Final = "text/event-stream"
NONE: Final[Mapping[str, str]] = MappingProxyType({})
REASONS: Final = {
    200: "OK",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


class HttpError(Exception):
    """A request that is answered with this status and nothing else."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] = NONE) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text
        self.headers = headers


class Request(NamedTuple):
    """A whole request. Header names are in lower case; one that came twice is joined by a comma."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = NONE
    body: bytes = b""
    keep_alive: bool = True

    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Response(NamedTuple):
    """An answer: with a body, or with a stream that is sent as it comes.

    The stream is closed when it ends and when the client goes away; that is how its work is cancelled.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = NONE
    stream: AsyncIterator[bytes] | None = None


Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(value, separators=(",", ":")).encode()
    return Response(status, body, {"content-type": JSON_TYPE, **(headers or {})})


def events(stream: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> Response:
    """Server-sent events, which no proxy on the way may hold back."""
    told = {"content-type": EVENTS_TYPE, "cache-control": "no-cache", "x-accel-buffering": "no"}
    return Response(200, headers=told | dict(headers or {}), stream=stream)


def head(response: Response, *, keep_alive: bool) -> bytes:
    """The status line and the headers, as they go on the wire."""
    lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Unknown')}"]
    lines += [f"{name}: {_one_line(value)}" for name, value in response.headers.items()]
    if response.stream is not None:
        lines.append("transfer-encoding: chunked")
    elif response.status != 204:
        lines.append(f"content-length: {len(response.body)}")
    if not keep_alive:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
