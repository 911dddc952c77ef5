"""Follow the engine's events; after each gap, look at everything again."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from factory_server.core.errors import FactoryError
from factory_server.drivers.docker import stream
from factory_server.drivers.docker.hardening import LABEL_FACTORY

log = logging.getLogger("factory.docker")

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 1.0

Event = dict[str, Any]


class Watch:
    """`on_event` hears each container's end; `on_gap` runs when a new stream stands.

    An engine that hangs keeps the stream open and silent, and goes on with what happened meanwhile.
    """

    def __init__(
        self,
        socket: str,
        factory: str,
        *,
        on_event: Callable[[Event], Awaitable[None]],
        on_gap: Callable[[], Awaitable[object]],
    ) -> None:
        self.connected = asyncio.Event()
        self._socket = socket
        wanted = {"type": ["container"], "event": ["die"], "label": [f"{LABEL_FACTORY}={factory}"]}
        self._query = {"filters": json.dumps(wanted)}
        self._on_event = on_event
        self._on_gap = on_gap

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                async with stream.get(self._socket, "/events", self._query) as pieces:
                    events = stream.objects(pieces)
                    if self.connected.is_set():
                        log.info("the engine's events stand again", extra={"action": "docker.events"})
                        await self._on_gap()
                    self.connected.set()
                    pause_s = RETRY_FIRST_S
                    async for event in events:
                        await self._on_event(event)
            except FactoryError as error:
                log.warning(
                    "the engine's events broke off", extra={"action": "docker.events", "error": str(error)}
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)
