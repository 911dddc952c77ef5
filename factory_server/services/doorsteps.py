"""Sockets before members that hibernate: a mate that knocks wakes the member, and finds it next time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from factory_server.core.errors import FactoryError
from factory_server.core.lifecycle import AgentState
from factory_server.core.model import AgentRow
from factory_server.services.parts import ACTOR, Parts

log = logging.getLogger("factory.doorsteps")

KNOCKING_MAX = 64
WAIT_MAX_S = 30.0
EVERYBODY = 0o666
"""Mates run under other users; only those see the socket into whose sandboxes it is wired."""
BEFORE = (AgentState.HIBERNATING, AgentState.WARMING, AgentState.PROVISIONING, AgentState.UNHEALTHY)


@dataclass(eq=False, slots=True)
class _Door:
    server: asyncio.Server
    path: str
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    knocking: int = 0


class Doorsteps:
    """Of one crew. A connection is held until its member is back, then closed: the caller connects anew."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._doors: dict[str, _Door] = {}

    def path(self, agent: AgentRow) -> str:
        """Where mates knock; '' where they need not."""
        door = self._doors.get(agent.id)
        return door.path if door is not None and (agent.sleeps or agent.state in BEFORE) else ""

    async def open(self, agents: Iterable[AgentRow]) -> None:
        """Open one for each member that hibernates or is frozen."""
        if not self._parts.doorsteps:
            return
        for agent in agents:
            if agent.sleeps and agent.id not in self._doors:
                self._doors[agent.id] = await self._listen(agent.id)

    def close(self, needed: Iterable[str] = ()) -> None:
        """Close those that are not needed any more: who knocks finds the member itself by now."""
        for agent in self._doors.keys() - set(needed):
            door = self._doors.pop(agent)
            door.server.close()
            door.gone.set()
            Path(door.path).unlink(missing_ok=True)

    async def _listen(self, agent: str) -> _Door:
        path = Path(self._parts.doorsteps) / f"{agent}.sock"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)

        async def knock(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._answer(agent, door, writer)

        server = await asyncio.start_unix_server(knock, str(path))
        path.chmod(EVERYBODY)
        door = _Door(server, str(path))
        return door

    async def _answer(self, agent: str, door: _Door, writer: asyncio.StreamWriter) -> None:
        door.knocking += 1
        try:
            if door.knocking <= KNOCKING_MAX:
                await self._parts.store.wake_agent(agent, None, ACTOR)
                async with asyncio.timeout(WAIT_MAX_S):
                    await door.gone.wait()
        except (FactoryError, TimeoutError) as error:
            log.info("cannot wake for a mate", extra={"agent": agent, "error": str(error)})
        finally:
            door.knocking -= 1
            writer.close()
