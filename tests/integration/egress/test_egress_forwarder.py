"""Inside the sandbox: programs speak to loopback, and whether anything answers is decided outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent_runtime import egress
from agent_runtime.egress import Forwarder, proxy_env
from agent_runtime.limits import EGRESS_CONNECTIONS_MAX

WITHIN_S = 10.0


@pytest.fixture
async def forwarder(tmp_path: Path) -> AsyncIterator[Forwarder]:
    made = Forwarder(tmp_path)
    await made.start(port=0)
    yield made
    await made.close()


async def dial(forwarder: Forwarder) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = forwarder.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads to the end, then answers: half-closes must come through."""
    writer.write(b"got " + await reader.read())
    await writer.drain()
    writer.close()


async def asked(forwarder: Forwarder, data: bytes) -> bytes:
    reader, writer = await dial(forwarder)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(WITHIN_S):
        got = await reader.read()
    writer.close()
    return got


async def test_the_way_out_may_appear_later_and_change(forwarder: Forwarder, tmp_path: Path) -> None:
    assert (await asked(forwarder, b"CONNECT a.b:443 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
    for _ in range(2):
        server = await asyncio.start_unix_server(answer, tmp_path / egress.SOCKET)
        assert await asked(forwarder, b"x" * 1_000_000) == b"got " + b"x" * 1_000_000
        server.close()
        (tmp_path / egress.SOCKET).unlink(missing_ok=True)
    assert (await asked(forwarder, b"CONNECT")).startswith(b"HTTP/1.1 502 ")


async def test_it_holds_no_more_than_its_bound(forwarder: Forwarder, tmp_path: Path) -> None:
    met = 0

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        writer.write(b"here")
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(hold, tmp_path / egress.SOCKET)
    held = [await dial(forwarder) for _ in range(EGRESS_CONNECTIONS_MAX)]
    for reader, _ in held:
        assert await reader.readexactly(4) == b"here"
    one_more = await dial(forwarder)
    with suppress(ConnectionError):
        assert await one_more[0].read() == b""
    assert met == EGRESS_CONNECTIONS_MAX
    for _, writer in (*held, one_more):
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    server.close()


async def test_without_a_port_there_is_no_proxy_and_no_failure(forwarder: Forwarder, tmp_path: Path) -> None:
    second = Forwarder(tmp_path)
    await second.start(port=int(forwarder.url.rpartition(":")[2]))
    assert second.url == ""
    assert proxy_env(second.url) == {}
    await second.close()
