"""Makes an MCP endpoint reachable by plain TCP, with headers that say who calls. For tests only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

HEAD_END = b"\r\n\r\n"

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[], Awaitable[Pair]]


def to_socket(path: Path) -> Dial:
    """Leads to an agent's own HTTP socket, as the factory does."""
    return lambda: asyncio.open_unix_connection(str(path))


@asynccontextmanager
async def forwarded(dial: Dial, who: Mapping[str, str]) -> AsyncIterator[str]:
    """The base URL of what `dial` leads to, for requests whose bodies have a length."""
    told = "".join(f"{name}: {value}\r\n" for name, value in who.items()).encode()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await _carry(dial, told, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            return  # either side has gone
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _carry(dial: Dial, told: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Both ways until one side ends; the other is then closed, too."""
    back, forth = await dial()
    try:
        ways = [
            asyncio.get_running_loop().create_task(_requests(reader, forth, told)),
            asyncio.get_running_loop().create_task(_bytes(back, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
                with suppress(asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
                    await way
    finally:
        forth.close()


async def _requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: bytes) -> None:
    while True:
        head = await reader.readuntil(HEAD_END)
        writer.write(head[:-2] + told + b"\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                writer.write(await reader.readexactly(int(line.partition(b":")[2])))
        await writer.drain()


async def _bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
