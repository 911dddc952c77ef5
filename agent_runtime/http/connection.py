"""One connection: requests in, one at a time, answers out; a client that goes away cancels its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from agent_runtime.http.limits import (
    AHEAD_MAX_BYTES,
    IDLE_MAX_S,
    RECEIVE_MAX_S,
    WRITE_BUFFER_MAX_BYTES,
    WRITE_STALL_MAX_S,
)
from agent_runtime.http.messages import Handler, HttpError, Request, Response, head, json_response
from agent_runtime.http.parser import Parser
from agent_runtime.owner import TaskOwner

log = logging.getLogger(__name__)

LAST_CHUNK: Final = b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Owned by its server, which knows it by `open` and `closed`."""

    def __init__(self, handler: Handler, tasks: TaskOwner, connections: set[Connection]) -> None:
        self._handler = handler
        self._tasks = tasks
        self._connections = connections
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self.answering: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_MAX_BYTES)
        self._connections.add(self)
        self._expect(IDLE_MAX_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._expect(None)
        self._can_write.set()
        if self.answering is not None:
            self.answering.cancel()

    def eof_received(self) -> bool:
        """Nobody who waits for an answer ends their side: the client is gone."""
        return False

    def data_received(self, data: bytes) -> None:
        if self._parser.idle and self.answering is None:
            self._expect(RECEIVE_MAX_S)
        self._parser.feed(data)
        if self.answering is None:
            self._go_on()
        elif len(self._parser) > AHEAD_MAX_BYTES and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._can_write.clear()
        self._expect(WRITE_STALL_MAX_S)

    def resume_writing(self) -> None:
        self._can_write.set()
        self._expect(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _expect(self, within_s: float | None) -> None:
        """End the connection unless the next thing happens in time."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(within_s, self.abort) if within_s is not None else None

    def _go_on(self) -> bool:
        """Answer the next request; False when it is not whole yet."""
        try:
            request = self._parser.next()
        except HttpError as error:
            self._refuse(error)
            return True
        if request is None:
            return False
        self._expect(None)
        self.answering = self._tasks.spawn(
            self._answer(request), f"http {request.method} {request.path}"[:80]
        )
        self.answering.add_done_callback(self._answered)
        return True

    def _wait(self) -> None:
        """Read on. What is to come has its time from here, and gets no more by coming in small pieces."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        self._expect(IDLE_MAX_S if self._parser.idle else RECEIVE_MAX_S)

    def _refuse(self, error: HttpError) -> None:
        """What follows a malformed request cannot be told from it: say so and end."""
        if self._transport is not None:
            refusal = _plain(error)
            self._transport.write(head(refusal, keep_alive=False) + refusal.body)
            self._transport.close()

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.answering = None
        if self._transport is None or self._transport.is_closing():
            return
        if task.cancelled() or task.exception() is not None:
            self._transport.close()
        elif not self._go_on():
            self._wait()

    async def _answer(self, request: Request) -> None:
        response = await self._handled(request)
        assert self._transport is not None
        stream = response.stream
        start = head(response, keep_alive=request.keep_alive)
        if stream is None:
            self._transport.write(start if request.method == "HEAD" else start + response.body)
            await self._can_write.wait()
        else:
            self._transport.write(start)
            await self._send(stream)
        if not request.keep_alive:
            self._transport.close()

    async def _handled(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except HttpError as error:
            return _plain(error)
        except Exception:
            log.exception("a request failed", extra={"method": request.method, "path": request.path[:80]})
            return _plain(HttpError(500, "a defect of ours; the log tells more"))

    async def _send(self, stream: AsyncIterator[bytes]) -> None:
        """The stream in chunks, as fast as the client reads."""
        assert self._transport is not None
        try:
            async for data in stream:
                if data:
                    self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
                    await self._can_write.wait()
        finally:
            if close := getattr(stream, "aclose", None):
                await close()
        self._transport.write(LAST_CHUNK)


def _plain(error: HttpError) -> Response:
    return json_response(
        {"error": {"code": error.status, "message": error.text}}, error.status, error.headers
    )
