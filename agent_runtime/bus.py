"""The crew's bus as an agent uses it: topics that last, channels that do not, and the shared context.

The link may appear late, vanish and come back: every command connects anew when it must, within its deadline,
and subscriptions continue after the last message they saw.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from agent_runtime import entries
from agent_runtime.entries import Change, Message, Versioned
from agent_runtime.limits import (
    BUS_COMMAND_MAX_S,
    BUS_CONNECTIONS_MAX,
    BUS_READ_MAX_ENTRIES,
    BUS_RECONNECT_FIRST_S,
    BUS_STREAM_MAX_ENTRIES,
    CONTEXT_ATTEMPTS_MAX,
    VALUE_MAX_BYTES,
)
from agent_runtime.resp import BusError, Connection, Reply
from agent_runtime.subscription import (
    ChannelSubscription,
    Places,
    StreamSubscription,
    Subscription,
    pause,
    refusal,
)
from wire.errors import Exhausted, Refused, Stale, Unavailable

T = TypeVar("T")


class Access(NamedTuple):
    """Where the bus is and who we are on it."""

    path: str
    username: str
    password: str
    prefix: str
    name: str  # what others see as the sender
    actor: str  # SPIFFE path, as `crew/<id>/agent/<name>`


class Bus:
    """One agent's access to its crew's bus."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(BUS_CONNECTIONS_MAX)
        self._places = Places()
        self._closed = False

    def close(self) -> None:
        """Drop every idle connection; those in use end with their command."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def ready(self, timeout_s: float = BUS_COMMAND_MAX_S) -> None:
        """Wait until the bus answers; `Unavailable` if it does not in time."""
        await self._retried(lambda connection: connection.call("PING"), timeout_s)

    async def publish(self, topic: str, data: Any) -> str:
        """Append to a topic and return the entry's id. Not repeated by us: after `Unavailable` it may be there."""
        fields = ("data", entries.encode(data), "from", self._access.name)
        arguments = ("XADD", self._topic(topic), "MAXLEN", "~", BUS_STREAM_MAX_ENTRIES, "*", *fields)
        await self.ready()
        async with self._connection() as connection:
            return entries.text(await connection.call(*arguments))

    async def read(self, topic: str, after: str = "0", count: int = BUS_READ_MAX_ENTRIES) -> list[Message]:
        """What a topic holds after a cursor, oldest first; waits for nothing."""
        key = self._topic(topic)
        reply = await self._retried(lambda c: c.call("XRANGE", key, f"({after}", "+", "COUNT", count))
        return [entries.message(entry) for entry in entries.items(reply)]

    def subscribe(self, topic: str, after: str = "$") -> Subscription[Message]:
        """A topic's messages after a cursor (`0`: from the start, `$`: from now on), for ever."""
        return self._follow(self._topic(topic), after, entries.message)

    async def send(self, channel: str, data: Any) -> int:
        """Tell whoever listens on a channel now; returns how many. Nothing is kept."""
        key = self._channel(channel)
        text = json.dumps({"data": data, "from": self._access.name}, separators=(",", ":"))
        if len(text) > VALUE_MAX_BYTES:
            raise Exhausted("cannot send more than 256 KiB on the bus", quota="bus message bytes")
        await self.ready()
        async with self._connection() as connection:
            reply = await connection.call("PUBLISH", key, text)
        return reply if isinstance(reply, int) else 0

    def listen(self, channel: str) -> Subscription[Message]:
        """What is sent on a channel while we listen; a broken link loses what was sent meanwhile."""
        return ChannelSubscription(self._open, self._places, entries.spoken, channel=self._channel(channel))

    async def get(self, key: str) -> Versioned:
        """A value of the shared context."""
        entries.check_key(key)
        name = self._context
        reply = await self._retried(lambda connection: connection.call("HGET", name, key))
        return entries.stored(reply)[0]

    async def texts(self) -> dict[str, str]:
        """Every value of the shared context as JSON, by key."""
        reply = await self._retried(lambda connection: connection.call("HGETALL", self._context))
        parts = [entries.text(part) for part in entries.items(reply)]
        found = {key: entries.stored(text)[0] for key, text in zip(parts[::2], parts[1::2], strict=True)}
        return {key: entries.encode(one.value) for key, one in found.items() if one.version}

    async def put(self, key: str, value: Any, *, if_version: int | None = None) -> int:
        """Write to the shared context and return the new version; `Refused` unless the version is as expected."""
        return await self._write(key, entries.encode(value), if_version)

    async def remove(self, key: str, *, if_version: int | None = None) -> int:
        """Take a key out of the shared context; its version goes on rising."""
        return await self._write(key, None, if_version)

    async def _write(self, key: str, text: str | None, if_version: int | None) -> int:
        entries.check_key(key)
        await self.ready()
        for attempt in range(CONTEXT_ATTEMPTS_MAX):
            async with self._connection() as connection:
                version = await self._try_write(connection, key, text, if_version)
            if version is not None:
                return version
            await asyncio.sleep(random.random() * 0.002 * min(attempt + 1, 16))
        raise Stale(f"cannot write context key '{key}': too many writers")

    def watch(self) -> Subscription[Change]:
        """Writes to the shared context from now on."""
        return self._follow(f"{self._context}log", "$", entries.change)

    def _follow(self, key: str, after: str, make: Callable[[Reply], T]) -> Subscription[T]:
        return StreamSubscription(self._open, self._places, make, key=key, after=after)

    async def _try_write(
        self, connection: Connection, key: str, text: str | None, if_version: int | None
    ) -> int | None:
        """One optimistic attempt; None when another writer was first."""
        name = self._context
        _, found = await connection.pipeline([("WATCH", name), ("HGET", name, key)])
        present, number = entries.stored(found)
        if if_version is not None and present.version != if_version:
            await connection.call("UNWATCH")
            raise Refused(
                f"context key '{key}' has version {present.version}, not {if_version}",
                reason="VERSION_MISMATCH",
                metadata={"version": str(present.version)},
            )
        version = number + 1
        log = ("key", key, "value", text or "", "version", version, "actor", self._access.actor)
        replies = await connection.pipeline(
            [
                ("MULTI",),
                ("HSET", name, key, entries.to_store(text, version)),
                ("XADD", f"{name}log", "MAXLEN", "~", BUS_STREAM_MAX_ENTRIES, "*", *log),
                ("EXEC",),
            ]
        )
        return None if replies[-1] is None else version

    @property
    def _context(self) -> str:
        return f"{self._access.prefix}ctx"

    def _topic(self, name: str) -> str:
        return f"{self._access.prefix}topic:{entries.name(name)}"

    def _channel(self, name: str) -> str:
        return f"{self._access.prefix}ch:{entries.name(name)}"

    async def _retried(
        self, work: Callable[[Connection], Awaitable[Reply]], timeout_s: float = BUS_COMMAND_MAX_S
    ) -> Reply:
        """Do something repeatable until it succeeds or time runs out: the bus may be a moment late."""
        pause_s = BUS_RECONNECT_FIRST_S
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                async with asyncio.timeout_at(deadline), self._connection() as connection:
                    return await work(connection)
            except TimeoutError as error:
                raise Unavailable("the bus did not answer in time") from error
            except Unavailable:
                if asyncio.get_running_loop().time() + pause_s >= deadline:
                    raise
                pause_s = await pause(pause_s)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection for one command or transaction, from the idle ones or new."""
        async with self._slots:
            connection = await self._take()
            try:
                yield connection
            except BusError as error:
                connection.close()  # it may be inside a transaction
                raise refusal(error) from error
            except BaseException:
                connection.close()
                raise
            if self._closed or connection.closed:
                connection.close()
            else:
                self._idle.append(connection)

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
            connection.close()
        return await self._open()

    async def _open(self) -> Connection:
        if self._closed:
            raise Refused("the agent is going away")
        return await Connection.open(self._access.path, self._access.username, self._access.password)
