"""Few connections to agents, none longer than needed, none lent twice; on both event loops."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from factory_server.core.errors import Unavailable
from factory_server.upstream import NotSent, Upstreams
from factory_server.upstream.limits import BUFFERED_MAX_BYTES, CONNECTIONS_MAX, IDLE_MAX

REQUEST = b"POST /mcp HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
WITHIN_S = 10.0
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@dataclass
class Peer:
    """What is behind the socket."""

    path: str
    says: bytes = WHOLE
    pause: asyncio.Event | None = None
    opened: int = 0
    closed: int = 0
    sent: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.writers.append(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                if self.pause is not None:
                    await self.pause.wait()
                writer.write(self.says)
                await writer.drain()
                self.sent += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.closed += 1
            writer.close()


Body = Callable[[Upstreams, Peer], Awaitable[None]]


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Runs a test's body with a peer, on one of the loops."""

    async def stage(body: Body) -> None:
        with tempfile.TemporaryDirectory(prefix="hfu") as directory:
            peer = Peer(str(Path(directory) / "http.sock"))
            async with await asyncio.start_unix_server(peer.serve, peer.path), asyncio.timeout(WITHIN_S):
                upstreams = Upstreams()
                await body(upstreams, peer)
                upstreams.close()
                for writer in peer.writers:
                    writer.close()

    def run(body: Body) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(stage(body))

    return run


async def asked(upstreams: Upstreams, path: str) -> tuple[int, bytes]:
    answer = await upstreams.send(path, REQUEST)
    try:
        status, _ = await answer.head()
        body = b""
        while data := await answer.read():
            body += data
    finally:
        answer.close()
    return status, body


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_calls_after_each_other_share_a_connection(play: Callable[[Body], None]):
    async def body(upstreams: Upstreams, peer: Peer) -> None:
        for _ in range(50):
            assert await asked(upstreams, peer.path) == (200, b"ok")
        assert peer.opened == 1
        assert upstreams.counts() == (0, 1)

    play(body)


def test_calls_at_once_are_bounded_and_few_connections_stay(play: Callable[[Body], None]):
    async def body(upstreams: Upstreams, peer: Peer) -> None:
        peer.pause = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS_MAX + 20):
                group.create_task(asked(upstreams, peer.path))
            await until(lambda: peer.opened == CONNECTIONS_MAX)
            assert upstreams.counts() == (CONNECTIONS_MAX, 0)
            peer.pause.set()
        assert peer.sent == CONNECTIONS_MAX + 20
        assert upstreams.counts()[1] <= IDLE_MAX
        await until(lambda: peer.opened - peer.closed <= IDLE_MAX)

    play(body)


def test_an_answer_that_is_let_go_early_ends_its_connection(play: Callable[[Body], None]):
    async def body(upstreams: Upstreams, peer: Peer) -> None:
        peer.says = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"
        answer = await upstreams.send(peer.path, REQUEST)
        assert (await answer.head())[0] == 200
        assert await answer.read() == b"ok"
        answer.close()
        answer.close()
        await until(lambda: peer.closed == 1)
        assert upstreams.counts() == (0, 0)

    play(body)


def test_nobody_at_the_socket_is_nothing_sent(play: Callable[[Body], None]):
    async def body(upstreams: Upstreams, peer: Peer) -> None:
        with pytest.raises(NotSent):
            await upstreams.send(peer.path + ".not", REQUEST)
        assert upstreams.counts() == (0, 0)

    play(body)


@pytest.mark.parametrize("says", [b"SSH-2.0\r\n\r\n", WHOLE + b"more", WHOLE[:-1]])
def test_what_is_no_answer_is_unavailable_and_its_connection_goes(play: Callable[[Body], None], says: bytes):
    async def body(upstreams: Upstreams, peer: Peer) -> None:
        peer.says = says
        answer = await upstreams.send(peer.path, REQUEST)
        if says == WHOLE[:-1]:
            await until(lambda: peer.sent == 1)
            peer.writers[0].close()
        with pytest.raises(Unavailable) as caught:
            await answer.head()
            while await answer.read():
                pass
        answer.close()
        assert not isinstance(caught.value, NotSent)
        await until(lambda: peer.closed == 1)
        assert upstreams.counts() == (0, 0)

    play(body)


def test_a_connection_that_its_agent_closed_is_not_used_again(play: Callable[[Body], None]):
    async def body(upstreams: Upstreams, peer: Peer) -> None:
        await asked(upstreams, peer.path)
        peer.writers[0].close()
        await until(lambda: upstreams.counts() == (0, 0))
        assert await asked(upstreams, peer.path) == (200, b"ok")
        assert peer.opened == 2

    play(body)


def test_an_agent_that_says_much_waits_for_its_reader(play: Callable[[Body], None]):
    async def body(upstreams: Upstreams, peer: Peer) -> None:
        size = 64 * BUFFERED_MAX_BYTES
        peer.says = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size)
        answer = await upstreams.send(peer.path, REQUEST)
        await answer.start()
        assert peer.sent == 0
        assert len(await answer.start()) < 4 * BUFFERED_MAX_BYTES
        read = 0
        while data := await answer.read():
            read += len(data)
        answer.close()
        assert read == size
        assert upstreams.counts() == (0, 1)

    play(body)
