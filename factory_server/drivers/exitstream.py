"""Hand every exit to every consumer, each from the moment it asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from factory_server.core.errors import Unavailable
from factory_server.core.sandbox import Exit

PENDING_MAX: Final = 10_000
RENEW_PAUSE_S: Final = 0.5

log = logging.getLogger(__name__)


class ExitStream:
    """One consumer's view; `ensure` is called when the source was lost, and may renew it."""

    def __init__(self, hub: ExitHub) -> None:
        self._hub = hub
        self._pending: asyncio.Queue[Exit | None] = asyncio.Queue(PENDING_MAX + 1)
        self._overflown = False

    def push(self, item: Exit | None) -> None:
        """Add an exit, or None for a lost source."""
        if self._pending.qsize() >= PENDING_MAX:
            self._overflown = True
            return
        self._pending.put_nowait(item)

    def __aiter__(self) -> ExitStream:
        return self

    async def __anext__(self) -> Exit:
        while True:
            if self._hub.closed and self._pending.empty():
                self._hub.leave(self)
                raise StopAsyncIteration
            if self._overflown:
                self._hub.leave(self)
                raise Unavailable("exits were lost: a consumer was too slow; look at the list again")
            item = await self._pending.get()
            if item is not None:
                return item
            if not self._hub.closed:
                await self._renew()

    async def _renew(self) -> None:
        """A source that cannot be renewed now says nothing about the instances: try again, do not end."""
        try:
            await self._hub.renew()
        except Unavailable as error:
            log.warning("sandboxes are out of reach", extra={"action": "driver_lost", "error": str(error)})
            await asyncio.sleep(self._hub.pause_s)
            self.push(None)

    async def aclose(self) -> None:
        """Stop listening."""
        self._hub.leave(self)


class ExitHub:
    """The source of all streams of one driver."""

    def __init__(self, renew: Callable[[], Awaitable[None]], *, pause_s: float = RENEW_PAUSE_S) -> None:
        self.renew = renew
        self.pause_s = pause_s
        self.closed = False
        self._streams: list[ExitStream] = []

    def stream(self) -> ExitStream:
        """A new consumer."""
        stream = ExitStream(self)
        self._streams.append(stream)
        if not self.closed:
            stream.push(None)  # the source may have been lost while nobody listened
        return stream

    def leave(self, stream: ExitStream) -> None:
        """Forget a consumer."""
        if stream in self._streams:
            self._streams.remove(stream)

    def push(self, item: Exit | None) -> None:
        """Tell all consumers."""
        for stream in self._streams:
            stream.push(item)

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        self.push(None)
