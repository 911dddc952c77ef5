"""Watch the registry: a snapshot, then changes, coalesced per subscriber so that a slow one holds no queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from factory_server.core import model
from factory_server.core.errors import FactoryError
from factory_server.core.lifecycle import AgentState
from factory_server.services.hub import REGISTRY
from factory_server.services.parts import Parts

log = logging.getLogger("factory.registry")

POLL_S = 1.0
"""The net under the doorbell: changes that another replica wrote."""
BATCH_MAX = 500


@dataclass(frozen=True, slots=True)
class Change:
    """Agents as they are now; `synced` after the snapshot; neither: a bookmark."""

    agents: Sequence[model.AgentRow] = ()
    synced: bool = False
    draining: bool = False


class _Subscriber:
    def __init__(self) -> None:
        self.pending: dict[str, model.AgentRow] = {}
        self.wake = asyncio.Event()


class RegistryFeed:
    """Reads what changed once for all subscribers. `run` must be a task of the owner's."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._mark = ""
        self._agents: dict[str, model.AgentRow] = {}
        self._subscribers: set[_Subscriber] = set()
        self.on_change: list[Callable[[model.AgentRow], None]] = []
        self.loaded = asyncio.Event()

    def find(self, agent: str) -> model.AgentRow | None:
        """A row as last seen (at most POLL_S old); None for unknown and stopped agents."""
        return self._agents.get(agent)

    def names(self) -> Mapping[str, model.AgentRow]:
        """Live agents by id, as last seen."""
        return self._agents

    async def run(self) -> None:
        """Follow the store until cancelled."""
        with self._parts.hub.subscribe(REGISTRY) as rings:
            while True:
                try:
                    await self._advance()
                except FactoryError as error:
                    self._parts.measures.trouble.labels("registry").inc()
                    log.warning("cannot read the registry", extra={"error": str(error)})
                await rings.wait(POLL_S)

    async def _advance(self) -> None:
        delta = await self._parts.store.registry_delta(self._mark)
        self._mark = delta.mark
        for agent in delta.agents:
            if self._agents.get(agent.id) == agent:
                continue
            if agent.state is AgentState.STOPPED:
                self._agents.pop(agent.id, None)
            else:
                self._agents[agent.id] = agent
            for tell in self.on_change:
                tell(agent)
            for subscriber in self._subscribers:
                subscriber.pending[agent.id] = agent
                subscriber.wake.set()
        self.loaded.set()

    async def watch(
        self, where: model.AgentFilter, *, bookmark_s: float, draining: asyncio.Event
    ) -> AsyncIterator[Change]:
        """The registry as it is, then as it changes."""
        await self.loaded.wait()
        subscriber = _Subscriber()
        self._subscribers.add(subscriber)
        try:
            snapshot = [a for a in self._agents.values() if _takes(where, a)]
            sent: set[str] = set()
            _note(sent, snapshot, where)
            for i in range(0, len(snapshot), BATCH_MAX):
                yield Change(snapshot[i : i + BATCH_MAX])
            yield Change(synced=True)
            while not draining.is_set():
                try:
                    async with asyncio.timeout(bookmark_s):
                        await subscriber.wake.wait()
                except TimeoutError:
                    yield Change()
                subscriber.wake.clear()
                pending, subscriber.pending = subscriber.pending, {}
                taken = [a for a in pending.values() if a.id in sent or _takes(where, a)]
                _note(sent, taken, where)
                if taken:
                    yield Change(taken)
            yield Change(draining=True)
        finally:
            self._subscribers.discard(subscriber)


def _note(sent: set[str], agents: Sequence[model.AgentRow], where: model.AgentFilter) -> None:
    """Remember what a subscriber holds: it is told when that leaves its filter, and of others nothing."""
    for agent in agents:
        if agent.state is not AgentState.STOPPED and _takes(where, agent):
            sent.add(agent.id)
        else:
            sent.discard(agent.id)


def _takes(where: model.AgentFilter, agent: model.AgentRow) -> bool:
    return (
        (not where.states or agent.state in where.states)
        and (not where.crew or agent.crew == where.crew)
        and (not where.profile or agent.profile == where.profile)
        and all(agent.labels.get(k) == v for k, v in where.labels.items())
    )
