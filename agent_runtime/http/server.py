"""Serve routes on a unix socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agent_runtime.http.connection import Connection
from agent_runtime.http.limits import CONNECTIONS_MAX, STOP_GRACE_S
from agent_runtime.http.messages import Handler, HttpError, Request, Response
from agent_runtime.owner import TaskOwner

log = logging.getLogger(__name__)

Routes = Mapping[str, Mapping[str, Handler]]
"""Path to method to handler."""


class HttpServer:
    """Accepts a bounded number of connections; a further one is closed at once."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._tasks = TaskOwner()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    async def start(self, path: Path) -> None:
        """Listen on a socket, in the place of one that a former process may have left."""
        _remove(path)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, str(path), backlog=CONNECTIONS_MAX)

    async def stop(self) -> None:
        """End everything; answers in flight get a moment, streams do not end by themselves."""
        if self._server is not None:
            self._server.close()
        answering = [connection.answering for connection in self._connections if connection.answering]
        if answering:
            await asyncio.wait(answering, timeout=STOP_GRACE_S)
        for connection in list(self._connections):
            connection.abort()
        await self._tasks.close()

    def _accept(self) -> asyncio.Protocol:
        if len(self._connections) >= CONNECTIONS_MAX:
            log.warning("too many HTTP connections", extra={"max": CONNECTIONS_MAX})
            return _Refused()
        return Connection(self._handle, self._tasks, self._connections)

    async def _handle(self, request: Request) -> Response:
        methods = self._routes.get(request.path)
        if methods is None:
            raise HttpError(404, f"there is no '{request.path[:80]}'")
        handler = methods.get(request.method) or (methods.get("GET") if request.method == "HEAD" else None)
        if handler is None:
            allowed = ", ".join(sorted(methods))
            raise HttpError(405, f"allowed here: {allowed}", {"allow": allowed})
        return await handler(request)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
