"""Streams that tell of a crew's changes: `subscriptions/listen`, and the GET stream of the handshake era."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Final

from aiohttp import web

from factory_server.api.http.mcp_asked import Asked
from factory_server.api.http.relay import EVENTS
from factory_server.core.errors import Exhausted
from factory_server.services.tools import ToolRegistry
from factory_server.services.watch import STREAM_AGE_MAX_S
from wire.mcp import forms, messages
from wire.mcp.revisions import LISTENABLE, RESOURCES_CHANGED, TOOLS_CHANGED
from wire.policy import Caller

KEEP_ALIVE_S: Final = 15.0
OF_CALLER_MAX: Final = 256
"""Streams: each holds a connection, of which the listener has 1000 for all."""
COMMENT: Final = b":\n\n"
OFFERED: Final = ("toolsListChanged", "resourcesListChanged")
"""Resources are the files of skills."""

Frames = Mapping[str, bytes]
"""What is sent of a change, by the notification's method."""


class Streams:
    """Those of every crew."""

    def __init__(self, registry: ToolRegistry, draining: asyncio.Event) -> None:
        self._registry = registry
        self._draining = draining
        self._open: Counter[str] = Counter()

    async def listen(self, asked: Asked) -> web.StreamResponse:
        """First what will come, then what comes."""
        identifier = asked.message.id
        wanted = forms.listenable(asked.message.params.get("notifications"), OFFERED)
        first = messages.event(forms.acknowledged(identifier, wanted))
        methods = (LISTENABLE[kind] for kind in wanted)
        frames = {method: messages.event(forms.subscribed(method, identifier)) for method in methods}
        return await self._stream(asked.http, asked.crew, asked.caller, first, frames)

    async def of_session(self, request: web.Request, crew: str, caller: Caller) -> web.StreamResponse:
        """The GET stream."""
        methods = (LISTENABLE[kind] for kind in OFFERED)
        frames = {method: messages.event(messages.notification(method)) for method in methods}
        return await self._stream(request, crew, caller, COMMENT, frames)

    async def _stream(
        self, request: web.Request, crew: str, caller: Caller, first: bytes, frames: Frames
    ) -> web.StreamResponse:
        """Tell of each change of what the caller may see; many at once are told once. Exhausted."""
        with self._counted(caller):
            return await self._told(request, crew, caller, first, frames)

    @contextmanager
    def _counted(self, caller: Caller) -> Iterator[None]:
        if self._open[caller.spiffe] >= OF_CALLER_MAX:
            message = f"a caller cannot open more than {OF_CALLER_MAX} streams"
            raise Exhausted(message, quota="streams of a caller")
        self._open[caller.spiffe] += 1
        try:
            yield
        finally:
            self._open[caller.spiffe] -= 1
            self._open += Counter()  # nothing is kept of who has none

    async def _told(
        self, request: web.Request, crew: str, caller: Caller, first: bytes, frames: Frames
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": EVENTS, "X-Accel-Buffering": "no"})
        watching = self._registry.watch(
            crew,
            caller.scopes,
            bookmark_s=KEEP_ALIVE_S,
            draining=self._draining,
            packs=RESOURCES_CHANGED in frames,
        )
        async with aclosing(watching):
            async for change in watching:
                if change.synced:  # from here on nothing is missed
                    break
            await response.prepare(request)
            await response.write(first)
            try:
                async with asyncio.timeout(STREAM_AGE_MAX_S):
                    async for change in watching:
                        kind = TOOLS_CHANGED if change.upserted or change.removed else ""
                        kind = RESOURCES_CHANGED if change.packs else kind
                        await response.write(frames.get(kind, COMMENT))
            except TimeoutError:
                pass  # the client listens again
        await response.write_eof()
        return response
