"""Connections to agents' sockets: a few are kept, many may be open, none outlives its use for long."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from factory_server.core.errors import Exhausted
from factory_server.upstream.connection import Answer, Connection, NotSent
from factory_server.upstream.limits import (
    CONNECT_MAX_S,
    CONNECTIONS_MAX,
    IDLE_MAX,
    IDLE_MAX_S,
    WAITING_MAX,
)


@dataclass(eq=False, slots=True)
class _Agent:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS_MAX))
    waiting: int = 0
    lent: int = 0
    idle: list[Connection] = field(default_factory=list)


class Upstreams:
    """By socket path: each instance has its own, so that a successor never gets its predecessor's connections."""

    def __init__(self) -> None:
        self._agents: dict[str, _Agent] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    def counts(self) -> tuple[int, int]:
        """Connections that are lent, and that rest."""
        agents = self._agents.values()
        return sum(a.lent for a in agents), sum(len(a.idle) for a in agents)

    async def send(self, path: str, request: bytes) -> Answer:
        """Send a whole request to the agent at this socket; the answer has to be closed. NotSent where nobody
        listens there, Exhausted where too many calls wait for it already."""
        agent = self._agents.setdefault(path, _Agent())
        if agent.waiting >= WAITING_MAX:
            raise Exhausted("the agent has too many calls already", quota="calls of an agent")
        agent.waiting += 1
        try:
            await agent.room.acquire()
        finally:
            agent.waiting -= 1
        agent.lent += 1
        try:
            connection = self._kept(agent) or await self._connect(path, agent)
            return connection.send(request, lambda used, again: self._release(path, agent, used, again))
        except BaseException:
            self._give_back(path, agent)
            raise

    def close(self) -> None:
        """End every connection that rests; those that are lent end with their calls."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for agent in self._agents.values():
            for connection in agent.idle:
                connection.abort()

    def _kept(self, agent: _Agent) -> Connection | None:
        oldest = time.monotonic() - IDLE_MAX_S
        while agent.idle:
            connection = agent.idle.pop()
            if connection.open and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, path: str, agent: _Agent) -> Connection:
        def lost(connection: Connection) -> None:
            if connection in agent.idle:
                agent.idle.remove(connection)
                self._forget(path, agent)

        try:
            async with asyncio.timeout(CONNECT_MAX_S):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_unix_connection(lambda: Connection(lost), path)
        except (OSError, TimeoutError) as error:
            raise NotSent(f"nobody answers at the agent's HTTP socket: {error or 'no room'}") from error
        return connection

    def _release(self, path: str, agent: _Agent, connection: Connection, again: bool) -> None:
        if again and connection.open and len(agent.idle) < IDLE_MAX:
            connection.rest()
            agent.idle.append(connection)
            if self._sweeping is None:
                self._sweeping = asyncio.get_running_loop().call_later(IDLE_MAX_S, self._sweep)
        else:
            connection.abort()
        self._give_back(path, agent)

    def _give_back(self, path: str, agent: _Agent) -> None:
        agent.lent -= 1
        agent.room.release()
        self._forget(path, agent)

    def _forget(self, path: str, agent: _Agent) -> None:
        """Of an agent without calls and connections nothing is kept."""
        if not (agent.idle or agent.lent or agent.waiting) and self._agents.get(path) is agent:
            del self._agents[path]

    def _sweep(self) -> None:
        """Close what has rested for long enough."""
        self._sweeping = None
        oldest = time.monotonic() - IDLE_MAX_S
        left = False
        for agent in list(self._agents.values()):
            for connection in [c for c in agent.idle if c.idle_since <= oldest]:
                connection.abort()
            left = left or bool(agent.idle)
        if left:
            self._sweeping = asyncio.get_running_loop().call_later(IDLE_MAX_S / 2, self._sweep)
