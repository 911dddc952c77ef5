"""Keep one connection to the fork server: find it, start it where there is none, renew it when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Final

from factory_server.core.errors import Unavailable
from factory_server.drivers.namespaces import findings, launcher
from factory_server.drivers.namespaces.client import ForkClient
from factory_server.drivers.namespaces.protocol import Message

CALL_MAX_S: Final = 10.0


class ForkLink:
    """`client()` gives a connection that worked a moment ago; `on_alive` hears who lives after each renewal."""

    def __init__(
        self,
        wish: launcher.Wish,
        threads: Executor,
        *,
        on_event: Callable[[Message], None],
        on_lost: Callable[[], None],
        on_alive: Callable[[Mapping[str, Message]], None],
        rootless: bool | None,
    ) -> None:
        self.rootless = bool(rootless)
        self._wish = wish
        self._threads = threads
        self._on_event = on_event
        self._on_lost = on_lost
        self._on_alive = on_alive
        self._tiers = [rootless] if rootless is not None else [False, True][os.geteuid() != 0 :]
        self._client: ForkClient | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def client(self) -> ForkClient:
        """The connection, renewed if it broke; starts the server if there is none."""
        async with self._connecting:
            if self._closed:
                raise Unavailable("this driver was closed")
            if self._client is None or not self._client.connected:
                try:
                    self._client = await self._find() or await self._launch()
                except OSError as error:
                    raise Unavailable(f"cannot reach the sandboxes' fork server: {error}") from error
                items = (await self._client.request("list", deadline_s=CALL_MAX_S))["items"]
                self._on_alive({i["instance"]: i for i in items if i["ready"] and not i["ended"]})
            return self._client

    def close(self) -> None:
        """Hang up."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    async def _find(self) -> ForkClient | None:
        """Adopt a server that runs; None if there is none, or none that would fork today's code."""
        client = ForkClient(self._on_event, self._on_lost)
        try:
            await client.connect(self._wish.where.fork_server)
        except (FileNotFoundError, ConnectionError):
            return None
        self.rootless = bool(client.greeting["rootless"])
        current = await self._settings(rootless=self.rootless)
        if client.greeting["fingerprint"] == current.fingerprint and self.rootless in self._tiers:
            return client
        # Its agents outlive it, and its successor adopts them.
        with contextlib.suppress(Unavailable):
            await client.request("stop", deadline_s=CALL_MAX_S, kill=False)
        client.close()
        return None

    async def _launch(self) -> ForkClient:
        """Start a server at the strongest tier that this host allows."""
        reasons = []
        for rootless in self._tiers:
            settings = await self._settings(rootless=rootless)
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, launcher.launch, settings)
            except Unavailable as error:
                reasons.append(f"{'rootless' if rootless else 'full'}: {error}")
                if (others := await self._find()) is not None:
                    return others  # a replica that started with us was first
                continue
            client = ForkClient(self._on_event, self._on_lost)
            await client.connect(self._wish.where.fork_server)
            self.rootless = rootless
            return client
        raise Unavailable(findings.no_tier(reasons))

    async def _settings(self, *, rootless: bool) -> launcher.Settings:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, launcher.settings, self._wish, rootless)
