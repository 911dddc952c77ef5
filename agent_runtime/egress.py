"""Lead programs of the sandbox to their crew's way out: loopback TCP, which they can speak, to its unix socket.

The socket may appear late, vanish and come back: each connection dials it anew.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from agent_runtime.limits import EGRESS_CONNECTIONS_MAX, EGRESS_DIAL_MAX_S
from agent_runtime.owner import TaskOwner

log = logging.getLogger(__name__)

SOCKET: Final = "egress.sock"
HOST: Final = "127.0.0.1"
PORT: Final = 3128
CHUNK_BYTES: Final = 64 * 1024
NO_WAY_OUT: Final = (
    b"HTTP/1.1 502 the crew's way out does not answer\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def proxy_env(url: str) -> dict[str, str]:
    """What tells programs of the proxy at `url`; nothing without one."""
    if not url:
        return {}
    proxied = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), url)
    return proxied | dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1")


class Forwarder:
    """Listens on the sandbox's own loopback. Decides nothing: that is the proxy's part, outside."""

    def __init__(self, peers: Path) -> None:
        self._socket = peers / SOCKET
        self._owner = TaskOwner()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self, port: int = PORT) -> None:
        """Listen; `url` is the proxy's. Without loopback there is none, and programs have no way out."""
        try:
            self._server = await asyncio.start_server(self._accept, HOST, port, limit=CHUNK_BYTES)
        except OSError as error:
            log.warning("cannot lead out", extra={"error": str(error)})
            return
        self.url = f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        await self._owner.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._owner) >= EGRESS_CONNECTIONS_MAX:
            writer.transport.abort()
        else:
            self._owner.spawn(self._lead((reader, writer)), "egress")

    async def _lead(self, near: Streams) -> None:
        try:
            async with asyncio.timeout(EGRESS_DIAL_MAX_S):
                far = await asyncio.open_unix_connection(str(self._socket), limit=CHUNK_BYTES)
        except OSError:
            await _tell(near)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(near[0], far[1]), name="egress out")
                group.create_task(_pump(far[0], near[1]), name="egress in")
        except* OSError:
            near[1].transport.abort()
        finally:
            near[1].close()
            far[1].close()


async def _tell(near: Streams) -> None:
    """Answer a request that leads nowhere; it is read first, for closing on unread bytes loses the answer."""
    try:
        async with asyncio.timeout(EGRESS_DIAL_MAX_S):
            await near[0].read(CHUNK_BYTES)
            near[1].write(NO_WAY_OUT)
            await near[1].drain()
    except OSError:
        log.info("a program left before it was told that there is no way out")
    finally:
        near[1].close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
