"""What a container printed, as the engine keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from factory_server.core.errors import NotFound
from factory_server.drivers.docker import stream

ANSWER_MAX_S: Final = 2.0
_BOTH: Final = {"stdout": "1", "stderr": "1"}


async def kept(socket: str, container: str) -> bytes:
    """All that is kept, which its log's size bounds; nothing when there is no such container."""
    try:
        async with stream.get(
            socket, f"/containers/{container}/logs", _BOTH, answer_max_s=ANSWER_MAX_S
        ) as pieces:
            return b"".join([piece async for piece in stream.output(pieces)])
    except NotFound:
        return b""


async def after(socket: str, container: str, position: int) -> AsyncIterator[bytes]:
    """What follows the first `position` bytes, until the container ends."""
    query = _BOTH | {"follow": "1"}
    try:
        async with stream.get(
            socket, f"/containers/{container}/logs", query, answer_max_s=ANSWER_MAX_S
        ) as pieces:
            async for piece in stream.output(pieces):
                skipped = min(position, len(piece))
                position -= skipped
                if piece[skipped:]:
                    yield piece[skipped:]
    except NotFound:
        return
