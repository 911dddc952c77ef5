"""An instance between its request and its first answer: what it waits for, and what may end the wait."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from factory_server.core.errors import Unavailable
from factory_server.core.sandbox import Exit


class EndedError(Unavailable):
    """Its container ended before it answered."""


@dataclass(eq=False)
class Birth:
    """One attempt to make an instance."""

    instance: str
    abandoned: bool = False
    arrived: bool = False
    ended: Exit | None = None
    container: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def see(self, name: str, wanted: str) -> None:
        """A file appeared in its directory."""
        if name == wanted:
            self.arrived = True
            self._changed.set()

    def fail(self, how: Exit) -> None:
        """Its container ended."""
        self.ended = how
        self._changed.set()

    def abandon(self) -> None:
        """Nobody wants it any more."""
        self.abandoned = True
        self._changed.set()

    async def settled(self) -> None:
        """Return when its socket is there; raise when it will not be."""
        while not self.arrived:
            self.check()
            await self._changed.wait()
            self._changed.clear()
        self.check()

    def check(self) -> None:
        """Raise when it ended or is not wanted."""
        if self.abandoned:
            raise Unavailable(f"cannot create '{self.instance}': it is being destroyed")
        if self.ended is not None:
            how = f"code {self.ended.code}, signal {self.ended.signal}" + ", out of memory" * self.ended.oom
            raise EndedError(f"cannot create '{self.instance}': it ended before it was ready ({how})")


@dataclass(eq=False)
class Flights:
    """Calls that the engine may still carry out, by instance, though nobody waits for them any more."""

    _flying: dict[str, Future[Any]] = field(default_factory=dict)

    def add(self, instance: str, future: Future[Any]) -> None:
        """Remember until it lands."""
        self._flying[instance] = future

    def __contains__(self, instance: str) -> bool:
        future = self._flying.get(instance)
        return future is not None and not future.done()

    async def landed(self, instance: str, *, deadline_s: float) -> None:
        """Return when nothing is in the air for this instance, whatever became of it."""
        future = self._flying.get(instance)
        if future is not None and not future.cancel() and not future.done():
            landing = asyncio.Event()
            loop = asyncio.get_running_loop()
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(landing.set))
            try:
                async with asyncio.timeout(deadline_s):
                    await landing.wait()
            except TimeoutError:
                raise Unavailable(f"the engine still makes '{instance}'") from None
        self._flying.pop(instance, None)
