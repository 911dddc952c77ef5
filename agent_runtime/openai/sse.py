"""Server-sent events: the data of each event, from bytes in pieces of any size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from agent_runtime.openai.http import LinkBroken

EVENT_MAX_BYTES: Final = 1024 * 1024


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each event, its lines joined; comments and other fields are passed over."""
    data: list[str] = []
    rest, size = b"", 0
    async for piece in pieces:
        # A carriage return at the end may be half of a line's end: it waits for the rest.
        *lines, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        size += len(piece)
        for line in lines:
            if not line:
                if data:
                    yield "\n".join(data)
                data, size = [], len(rest)
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" ").decode(errors="replace"))
        if size > EVENT_MAX_BYTES:
            raise LinkBroken(f"an event has more than {EVENT_MAX_BYTES} bytes")
    if data:
        yield "\n".join(data)
