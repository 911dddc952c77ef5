"""Renew agents' identities at half their tokens' life, over their sessions."""

from __future__ import annotations

import asyncio
import logging
import time

from factory_server.core.errors import FactoryError
from factory_server.services.parts import Parts
from factory_server.services.registry import RegistryFeed
from factory_server.services.sessions import Session, Sessions
from hyperfactory.v1 import agent_service_pb2

log = logging.getLogger("factory.renewal")

LOOK_S = 1.0


class Renewal:
    """Each agent is renewed on its own phase, counted from its session's start, so that thousands do not
    renew together. `run` must be a task of the owner's."""

    def __init__(self, parts: Parts, sessions: Sessions, registry: RegistryFeed) -> None:
        self._parts = parts
        self._sessions = sessions
        self._registry = registry
        self._due: dict[str, tuple[int, float]] = {}
        sessions.on_attached.append(self._attached)

    async def _attached(self, session: Session) -> None:
        """A session stands (again): an agent whose factory was away may hold an old identity."""
        if self._due.get(session.agent, (0, 0.0))[0] == session.generation:
            self._due[session.agent] = (session.generation, time.monotonic())
        else:
            self._due[session.agent] = (session.generation, time.monotonic() + self._half_life_s())

    def _half_life_s(self) -> float:
        return self._parts.identities.token_ttl_s() / 2

    async def run(self) -> None:
        """Renew what is due until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            for agent, (generation, due) in list(self._due.items()):
                session = self._sessions.get(agent)
                if session is None or session.generation != generation:
                    del self._due[agent]
                elif due <= now:
                    await self._renew(session)

    async def _renew(self, session: Session) -> None:
        agent = self._registry.find(session.agent)
        if agent is None or agent.generation != session.generation:
            return
        try:
            identity = self._parts.identities.identify(agent)
        except FactoryError as error:
            log.warning("cannot renew", extra={"agent": session.agent, "error": str(error)})
            return
        if await session.send(agent_service_pb2.DeliverRequest(identity=identity)):
            self._due[session.agent] = (session.generation, time.monotonic() + self._half_life_s())
