"""Long answers of the engine (events, output that grows) as they come.

The SDK reads them with a blocked thread that nobody can cancel; these few lines of HTTP can be cancelled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlencode

from factory_server.core.errors import NotFound, Unavailable

CONNECT_MAX_S: Final = 1.0
LINE_MAX_BYTES: Final = 1024 * 1024
_FRAME_HEADER_BYTES: Final = 8
_OK, _NOT_FOUND = 200, 404


@asynccontextmanager
async def get(
    socket: str, path: str, query: dict[str, str], *, answer_max_s: float = CONNECT_MAX_S
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Ask, and give the pieces of the answer's body."""
    try:
        async with asyncio.timeout(CONNECT_MAX_S):
            reader, writer = await asyncio.open_unix_connection(socket, limit=LINE_MAX_BYTES)
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"the engine does not answer: {error!r}") from error
    try:
        async with asyncio.timeout(answer_max_s):
            writer.write(f"GET {path}?{urlencode(query)} HTTP/1.1\r\nHost: engine\r\n\r\n".encode())
            status, chunked = await _head(reader)
        if status == _NOT_FOUND:
            raise NotFound(f"the engine knows no '{path}'")
        if status != _OK:
            raise Unavailable(f"the engine answers {status} to '{path}'")
        yield _pieces(reader, chunked=chunked)
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise Unavailable(f"the engine's answer broke off: {error!r}") from error
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    return status, "transfer-encoding: chunked" in head


async def _pieces(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        while data := await reader.read(LINE_MAX_BYTES):
            yield data
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        data = await reader.readexactly(size + 2)
        yield data[:-2]


async def objects(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """JSON objects, one a line."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
        if len(rest) > LINE_MAX_BYTES:
            raise ValueError("a line without an end")


async def output(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A container's output without the headers that tell stdout from stderr."""
    rest = b""
    async for piece in pieces:
        rest += piece
        text = b""
        while len(rest) >= _FRAME_HEADER_BYTES:
            end = _FRAME_HEADER_BYTES + int.from_bytes(rest[4:_FRAME_HEADER_BYTES], "big")
            if len(rest) < end:
                break
            text += rest[_FRAME_HEADER_BYTES:end]
            rest = rest[end:]
        if text:
            yield text
