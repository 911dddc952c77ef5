"""Follow a topic, the context or a channel over broken links; ends with its last reader, wherever that stops.

Iterators, not generators: one that is left with `break` is closed at once, not when a collector finds it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from agent_runtime import entries
from agent_runtime.limits import (
    BUS_BLOCK_MS,
    BUS_COMMAND_MAX_S,
    BUS_READ_MAX_ENTRIES,
    BUS_RECONNECT_FIRST_S,
    BUS_RECONNECT_MAX_S,
    BUS_SUBSCRIPTIONS_MAX,
)
from agent_runtime.resp import BusError, Connection, Reply
from wire.errors import Exhausted, Refused, Unavailable

T = TypeVar("T")

Open = Callable[[], Awaitable[Connection]]


class Places:
    """How many subscriptions one agent holds."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self) -> None:
        if self.taken >= BUS_SUBSCRIPTIONS_MAX:
            raise Exhausted(
                f"cannot hold more than {BUS_SUBSCRIPTIONS_MAX} subscriptions", quota="subscriptions"
            )
        self.taken += 1

    def give_back(self) -> None:
        self.taken -= 1


class Subscription(Generic[T]):
    """Yields what arrives, for ever; reconnects by itself. One reader at a time."""

    def __init__(self, open_connection: Open, places: Places, make: Callable[[Reply], T]) -> None:
        self._closed = True
        places.take()
        self._closed = False
        self._open = open_connection
        self._places = places
        self._make = make
        self._arrived: deque[Reply] = deque()
        self._connection: Connection | None = None

    def __aiter__(self) -> Subscription[T]:
        return self

    async def __anext__(self) -> T:
        pause_s = BUS_RECONNECT_FIRST_S
        while not self._arrived:
            if self._closed:
                raise StopAsyncIteration
            try:
                await self._fill()
            except BusError as error:
                self._drop()
                raise refusal(error) from error
            except Unavailable:
                self._drop()
                pause_s = await pause(pause_s)
        return self._make(self._pop())

    def close(self) -> None:
        """Give the connection and the place back."""
        if not self._closed:
            self._closed = True
            self._places.give_back()
            self._drop()

    async def aclose(self) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    async def _fill(self) -> None:
        if self._connection is None:
            self._connection = await self._open()
            await self._begin(self._connection)
        self._arrived.extend(await self._read(self._connection))

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _pop(self) -> Reply:
        return self._arrived.popleft()

    async def _begin(self, connection: Connection) -> None:
        """Prepare a new connection."""

    async def _read(self, connection: Connection) -> list[Reply]:
        """Wait for more; may return nothing."""
        raise NotImplementedError


class StreamSubscription(Subscription[T]):
    """A stream's entries after a cursor, without loss or doubles; `$` means from the first read on."""

    def __init__(
        self, open_connection: Open, places: Places, make: Callable[[Reply], T], *, key: str, after: str
    ) -> None:
        super().__init__(open_connection, places, make)
        self._key = key
        self._cursor = after

    async def _begin(self, connection: Connection) -> None:
        # The id of the newest entry, unlike `$`, survives a reconnect.
        if self._cursor == "$":
            found = entries.items(await connection.call("XREVRANGE", self._key, "+", "-", "COUNT", 1))
            self._cursor = entries.entry_id(found[0]) if found else "0-0"

    async def _read(self, connection: Connection) -> list[Reply]:
        options = ("COUNT", BUS_READ_MAX_ENTRIES, "BLOCK", BUS_BLOCK_MS)
        command = ("XREAD", *options, "STREAMS", self._key, self._cursor)
        reply = await connection.call(*command, timeout_s=BUS_BLOCK_MS / 1000 + BUS_COMMAND_MAX_S)
        found = [
            entry for stream in entries.items(reply) for entry in entries.items(entries.items(stream)[1])
        ]
        if found:
            self._cursor = entries.entry_id(found[-1])
        return found


class ChannelSubscription(Subscription[T]):
    """What is sent on a channel while we listen; a broken link loses what was sent meanwhile."""

    def __init__(
        self, open_connection: Open, places: Places, make: Callable[[Reply], T], *, channel: str
    ) -> None:
        super().__init__(open_connection, places, make)
        self._channel = channel

    async def _begin(self, connection: Connection) -> None:
        await connection.call("SUBSCRIBE", self._channel)

    async def _read(self, connection: Connection) -> list[Reply]:
        return [await connection.receive()]


def refusal(error: BusError) -> Refused | Unavailable:
    """What an error reply means: a bus that loads or shuts down comes back, the rest is our own doing."""
    if error.kind in ("LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN"):
        return Unavailable(f"the bus is not ready: {error.message}")
    return Refused(f"the bus refuses: {error.message}", reason="POLICY_DENIED")


async def pause(pause_s: float) -> float:
    """Wait with jitter and return the next, longer pause."""
    await asyncio.sleep(pause_s * (0.5 + random.random()))
    return min(pause_s * 2, BUS_RECONNECT_MAX_S)
