"""Ask the stack's own parts over loopback: plain HTTP on their metrics ports."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

ANSWER_WITHIN_S = 3.0
BODY_MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What a part said."""

    status: int
    body: bytes


def ports(home: Path) -> dict[str, int]:
    """The ports that the stack of this home chose; empty where none was ever started."""
    file = home / "ports.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


async def get(port: int, path: str) -> Answer:
    """Fetch a path; OSError or TimeoutError where nobody answers."""
    async with asyncio.timeout(ANSWER_WITHIN_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            await writer.drain()
            head, _, body = (await _read_all(reader)).partition(b"\r\n\r\n")
        finally:
            writer.close()
    words = head.split(maxsplit=2)
    return Answer(int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, body)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    read = bytearray()
    while len(read) < BODY_MAX_BYTES and (chunk := await reader.read(65_536)):
        read += chunk
    return bytes(read)
