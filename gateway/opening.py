"""The first moments of a connection: bytes are gathered until they say whom it wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import structlog

from gateway.hello import NotAClientHello, server_name
from gateway.pipe import BUFFER_MAX_BYTES

HELLO_WITHIN_S: Final = 5.0

log = structlog.get_logger()


class Opening(asyncio.Protocol):
    """A connection of which we do not know yet where it goes."""

    def __init__(
        self,
        admit: Callable[[], bool],
        on_named: Callable[[Opening, str], asyncio.Task[None]],
        on_over: Callable[[], None],
    ) -> None:
        self._admit = admit
        self._on_named = on_named
        self._on_over = on_over
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self.first = bytearray()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._admit():
            self._timer = asyncio.get_running_loop().call_later(HELLO_WITHIN_S, self.transport.abort)
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.first += data
        if len(self.first) > BUFFER_MAX_BYTES:
            self.transport.abort()
        elif self._task is None:
            self._read_name()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        task = self._task
        self.hand_over()
        if task is not None:
            task.cancel()

    @property
    def handed_over(self) -> bool:
        return self._over

    def hand_over(self) -> bytes:
        """Let go of the connection: somebody leads it now. Returns what the client has sent so far."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
        if not self._over:
            self._over = True
            self._on_over()
        return bytes(self.first)

    def _read_name(self) -> None:
        try:
            name = server_name(self.first)
        except NotAClientHello as error:
            log.info("refused a connection", action="relay.not_tls", why=str(error))
            self.transport.abort()
            return
        if name is not None and self._timer is not None:
            self._timer.cancel()
            self._task = self._on_named(self, name)
