"""A few pages over plain HTTP on loopback: for Traefik its document, for operators figures and routes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

REQUEST_WITHIN_S: Final = 5.0
REQUEST_MAX_BYTES: Final = 8192
_REASONS: Final = {200: b"OK", 404: b"Not Found", 405: b"Method Not Allowed", 503: b"Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a GET."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]


async def serve(pages: Pages, sock: socket.socket) -> asyncio.Server:
    """Serve the pages on a listening socket until the server is closed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_WITHIN_S):
                writer.write(_response(await reader.readuntil(b"\r\n\r\n"), pages))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # no request, or nobody to answer
        finally:
            writer.close()

    return await asyncio.start_server(answer, sock=sock, limit=REQUEST_MAX_BYTES)


def _response(head: bytes, pages: Pages) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0].decode("latin-1")
    if method != b"GET":
        page = Page(405, b"only GET\n")
    elif path in pages:
        page = pages[path]()
    else:
        page = Page(404, f"{', '.join(pages)}\n".encode())
    return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        page.status,
        _REASONS[page.status],
        page.kind.encode(),
        len(page.body),
        page.body,
    )
