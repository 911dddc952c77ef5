"""Answers in proto3 JSON: one document, server-sent events, or a line for each message of a stream."""

from __future__ import annotations

import json
from typing import Any, Final

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import status_pb2

from factory_server.api.http.failures import JSON, as_json

EVENTS: Final = "text/event-stream"
LINES: Final = "application/x-ndjson"
FLOAT_EXACT_MAX: Final = 2**53


def encode(message: Message) -> bytes:
    """A message as JSON; fields that are not set are there, so that the shape does not depend on the data."""
    return _dump(_whole(MessageToDict(message, always_print_fields_with_no_presence=True)))


def document(message: Message) -> web.Response:
    """The answer of a unary method."""
    return web.Response(body=encode(message), content_type=JSON)


def _whole(value: Any) -> Any:
    """Write whole numbers without a fraction: free JSON is kept as floats, and an agent's schema says `1`."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= FLOAT_EXACT_MAX
    return int(value) if whole else value


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


class Stream:
    """A stream's answer: begun with its first message, so that what is refused before is a plain refusal."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._events = EVENTS in request.headers.get("Accept", "")
        self._response: web.StreamResponse | None = None

    @property
    def begun(self) -> bool:
        return self._response is not None

    async def write(self, message: Message) -> None:
        """One message; its cursor, if it has one, is the event's id."""
        cursor = getattr(message, "cursor", "")
        await self._send(
            encode(message), event=b"", cursor=cursor.encode() if isinstance(cursor, str) else b""
        )

    async def end(self) -> web.StreamResponse:
        """The end as it should be."""
        response = await self._begin()
        await response.write_eof()
        return response

    async def fail(self, status: status_pb2.Status) -> web.StreamResponse:
        """The end with an error, said in the stream."""
        error = as_json(status)
        await self._send(_dump(error if self._events else {"error": error}), event=b"error", cursor=b"")
        return await self.end()

    async def _send(self, data: bytes, *, event: bytes, cursor: bytes) -> None:
        response = await self._begin()
        if not self._events:
            await response.write(data + b"\n")
            return
        head = (b"event: %s\n" % event if event else b"") + (b"id: %s\n" % cursor if cursor else b"")
        await response.write(b"%sdata: %s\n\n" % (head, data))

    async def _begin(self) -> web.StreamResponse:
        if self._response is None:
            self._response = web.StreamResponse()
            self._response.content_type = EVENTS if self._events else LINES
            self._response.headers["X-Accel-Buffering"] = "no"
            await self._response.prepare(self._request)
        return self._response
