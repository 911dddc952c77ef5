"""The bus on a Redis or Valkey server: one ACL user per generation, one namespace per crew, doorbells."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from factory_server.bus import context, keys
from factory_server.bus.asked import COMMAND_MAX_S, asked, end_if_cancelled
from factory_server.core.model import ContextRow
from hyperfactory.v1 import agent_service_pb2

BLOCK_SLACK_S = 3.0
CONNECTIONS_MAX = 64
SCAN_COUNT = 500
RECONNECT_FIRST_S = 0.05
RECONNECT_MAX_S = 1.0
BUS_LINK = "bus.sock"


class RedisBus:
    """`core.ports.Bus` through redis-py. `secret` derives agents' passwords, so that none is stored."""

    def __init__(self, url: str, *, secret: bytes) -> None:
        self._secret = secret
        self._redis: Any = Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=COMMAND_MAX_S,
            max_connections=CONNECTIONS_MAX,
            retry=Retry(NoBackoff(), 1),
        )
        self.socket_path = str(self._redis.connection_pool.connection_kwargs.get("path", ""))

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    # Agents

    async def grant(self, crew: str, agent: str, generation: int) -> agent_service_pb2.BusAccess:
        """See the port."""
        name = keys.user(crew, agent, generation)
        password = hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()
        async with asked():
            await self._redis.execute_command("ACL", "SETUSER", name, *keys.rules(crew, password))
        return agent_service_pb2.BusAccess(
            socket=BUS_LINK, username=name, password=password, prefix=keys.prefix(crew)
        )

    async def revoke(self, crew: str, agent: str, generation: int) -> None:
        """See the port: deleting a user also cuts its connections."""
        async with asked():
            await self._redis.execute_command("ACL", "DELUSER", keys.user(crew, agent, generation))

    async def drop_crew(self, crew: str) -> None:
        """See the port."""
        users = [keys.user(*u) for u in await self.list_users() if u[0] == crew]
        async with asked():
            if users:
                await self._redis.execute_command("ACL", "DELUSER", *users)
            cursor = 0
            while True:
                cursor, found = await self._redis.scan(cursor, match=f"crew*:{crew}:*", count=SCAN_COUNT)
                # Agents name keys as they like: one of another crew may look so, too.
                own = [name for name in found if keys.crew_of(name) == crew]
                if own:
                    await self._redis.unlink(*own)
                if cursor == 0:
                    return

    async def list_users(self) -> Sequence[tuple[str, str, int]]:
        """See the port."""
        async with asked():
            names: Sequence[str] = await self._redis.acl_users()
        matches = filter(None, (keys.USER.match(name) for name in names))
        return [(m[1], m[2], int(m[3])) for m in matches]

    async def list_crews(self) -> Sequence[str]:
        """See the port."""
        crews: set[str] = set()
        async with asked():
            cursor = 0
            while True:
                cursor, found = await self._redis.scan(cursor, match="crew*", count=SCAN_COUNT)
                crews.update(filter(None, map(keys.crew_of, found)))
                if cursor == 0:
                    return sorted(crews)

    # Context

    async def put_context(
        self, crew: str, key: str, value: str | None, actor: str, if_version: int | None
    ) -> int:
        """See the port."""
        async with asked():
            return await context.put(self._redis, crew, key, value, actor, if_version)

    async def get_context(self, crew: str, key: str) -> ContextRow:
        """See the port."""
        async with asked():
            return await context.get(self._redis, crew, key)

    async def list_context(self, crew: str, prefix: str) -> Sequence[ContextRow]:
        """See the port."""
        async with asked():
            return await context.list_keys(self._redis, crew, prefix)

    async def restore_context(self, crew: str, rows: Sequence[ContextRow]) -> None:
        """See the port."""
        async with asked():
            await context.restore(self._redis, crew, rows)

    async def read_context_log(
        self, crew: str, cursor: str, *, block_s: float
    ) -> tuple[Sequence[ContextRow], str]:
        """See the port."""
        found = await self.tail_contexts({crew: cursor}, block_s=block_s)
        return (found[0][1], found[0][2]) if found else ((), cursor)

    async def tail_contexts(
        self, cursors: Mapping[str, str], *, block_s: float
    ) -> Sequence[tuple[str, Sequence[ContextRow], str]]:
        """See the port."""
        async with asked(block_s + BLOCK_SLACK_S):
            return await context.tail(self._redis, cursors, block_s=block_s)

    # The server

    async def incarnation(self) -> str:
        """See the port."""
        async with asked():
            info: Mapping[str, Any] = await self._redis.info("server")
        return str(info.get("run_id", ""))

    async def ring(self, topic: str) -> None:
        """See the port."""
        async with asked():
            await self._redis.publish(keys.DOORBELL, topic)

    async def doorbells(self) -> AsyncIterator[str]:
        """See the port."""
        pause_s = RECONNECT_FIRST_S
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(keys.DOORBELL)
                    end_if_cancelled()
                    async for message in pubsub.listen():
                        pause_s = RECONNECT_FIRST_S
                        if message["type"] == "message":
                            yield str(message["data"])
            except (RedisError, OSError):
                end_if_cancelled()
                await asyncio.sleep(pause_s * (0.5 + random.random()))
                pause_s = min(pause_s * 2, RECONNECT_MAX_S)
