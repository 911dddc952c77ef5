"""One connection to an agent: a request goes out, its answer comes back as fast as it is read."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from factory_server.core.errors import Unavailable
from factory_server.upstream.limits import BUFFERED_MAX_BYTES
from factory_server.upstream.parsing import AnswerParser, Head, Headers, MalformedError


class NotSent(Unavailable):
    """Nothing of the request can have reached the agent: it may be sent again."""


class Connection(asyncio.Protocol):
    """Owned by a pool, which lends it to one request at a time."""

    def __init__(self, lost: Callable[[Connection], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: Answer | None = None
        self.idle_since = 0.0
        self._lost = lost
        self._parser = AnswerParser()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self.abort()  # it speaks without being asked
            return
        try:
            pieces = self._parser.feed(data)
        except MalformedError as error:
            self._break(str(error))
            return
        self.answer.take(self._parser, pieces)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.ended:
            try:
                self._parser.end_of_stream()
            except MalformedError as error:
                self.answer.fail(str(error))
            else:
                self.answer.take(self._parser, [])
        self._lost(self)

    @property
    def open(self) -> bool:
        """Whether a request may go out on it."""
        return self.transport is not None and not self.transport.is_closing()

    def send(self, request: bytes, release: Callable[[Connection, bool], None]) -> Answer:
        """Send a request; `release` is called once, with whether the connection can take another."""
        if self.transport is None or self.transport.is_closing():
            raise NotSent("the agent has closed its connection")
        self._parser = AnswerParser()
        self.answer = Answer(self, release)
        self.transport.write(request)
        return self.answer

    def rest(self) -> None:
        """Between two requests."""
        self.answer = None
        self.idle_since = time.monotonic()

    def abort(self) -> None:
        """End it now, whatever is on its way: that is how an agent learns that nobody waits any more."""
        if self.transport is not None:
            self.transport.abort()

    def _break(self, why: str) -> None:
        if self.answer is not None:
            self.answer.fail(why)
        self.abort()


class Answer:
    """An answer on its way. Whoever has it must `close` it, after its end or before."""

    def __init__(self, connection: Connection, release: Callable[[Connection, bool], None]) -> None:
        self._connection = connection
        self._release: Callable[[Connection, bool], None] | None = release
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._paused = False
        self._wake = asyncio.Event()
        self._head: Head | None = None
        self._wrong = ""
        self.ended = False

    async def head(self) -> tuple[int, Headers]:
        """Status and headers. Unavailable where the agent does not answer as HTTP has it."""
        while self._head is None:
            await self._woken()
        return self._head.status, self._head.headers

    def whole(self) -> bytes | None:
        """The body, where all of it has come."""
        return b"".join(self._pieces) if self.ended else None

    async def start(self) -> bytes:
        """The body, or as much of it as is held for its reader; it stays to be read."""
        while not self.ended and not self._paused:
            await self._woken()
        return b"".join(self._pieces)

    async def read(self) -> bytes:
        """What has come of the body since; empty at its end. Unavailable where it breaks off."""
        while not self._pieces:
            if self.ended:
                return b""
            await self._woken()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._held_bytes = 0
        if self._paused and self._connection.transport is not None:
            self._paused = False
            self._connection.transport.resume_reading()
        return data

    def close(self) -> None:
        """Let go: of a connection that may serve another call, or of a call that is not wanted any more."""
        release, self._release = self._release, None
        if release is None:
            return
        reusable = self.ended and self._head is not None and self._head.keep_alive
        if not reusable:
            self._connection.abort()
        release(self._connection, reusable)

    # The connection's side

    def take(self, parser: AnswerParser, pieces: list[bytes]) -> None:
        """What the parser has found."""
        self._head, self.ended = parser.head, parser.ended
        self._pieces.extend(pieces)
        self._held_bytes += sum(map(len, pieces))
        if (
            self._held_bytes > BUFFERED_MAX_BYTES
            and not self._paused
            and self._connection.transport is not None
        ):
            self._paused = True
            self._connection.transport.pause_reading()
        self._wake.set()

    def fail(self, why: str) -> None:
        """There will be no more."""
        self._wrong = why
        self._wake.set()

    async def _woken(self) -> None:
        if self._wrong:
            raise Unavailable(f"the agent's answer is broken: {self._wrong}")
        self._wake.clear()
        await self._wake.wait()
