"""Pieces of requests: ids, durations, JSON values, pages."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value

from wire.proto_json import fill, load_object

PAGE_SIZE = 500
PAGES_MAX = 200


def new_id() -> str:
    """Make an id by which a repeat of a request is known as a repeat."""
    return str(uuid.uuid4())


def duration(seconds: float) -> Duration:
    """Write seconds as a message."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1_000_000_000))
    return message


def struct(text: str, name: str) -> Struct:
    """Parse a JSON object."""
    return fill(load_object(text, name), Struct(), name)


def value(text: str) -> Value:
    """Parse any JSON value; what is no JSON is taken as text."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        body = text
    message = Value()
    return fill(body, message, "value")


async def pages(fetch: Callable[[str], Awaitable[Any]]) -> AsyncIterator[Any]:
    """Fetch page after page until the last."""
    token = ""
    for _ in range(PAGES_MAX):
        page = await fetch(token)
        yield page
        token = page.next_page_token
        if not token:
            return
