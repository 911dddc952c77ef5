"""The Tool Registry: what every agent last really said of its tools, by public name, in memory.

It listens; it never asks. So an agent that hangs delays no list: what it last said is listed, marked stale.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from factory_server.core import model, tools
from factory_server.core.errors import FactoryError, NotFound
from factory_server.core.lifecycle import AgentState
from factory_server.core.tools import Entry, KnownOffer, Offer
from factory_server.services.hub import TOOLS
from factory_server.services.parts import Parts
from factory_server.services.registry import RegistryFeed
from factory_server.services.sessions import Session, Sessions
from factory_server.services.tools_first import FirstWords
from factory_server.services.tools_packs import CrewPacks
from factory_server.services.tools_record import OfferRecord
from hyperfactory.v1 import agent_service_pb2, types_pb2

log = logging.getLogger("factory.tools")

POLL_S = 2.0
"""The net under the doorbell: offers that another replica heard."""
BATCH_MAX = 200
KEPT_MIN_S = 60.0
"""An offer of an agent that nobody knows (yet) is kept so long."""

Key = tuple[str, str]
"""A crew's id and a public name."""


@dataclass(frozen=True, slots=True)
class ToolChange:
    """What a watcher is told; `synced` after what was there; nothing: a bookmark."""

    upserted: Sequence[Entry] = ()
    removed: Sequence[Key] = ()
    synced: bool = False
    packs: bool = False
    """The crew has other skill packs than before."""


@dataclass(eq=False, slots=True)
class _Watcher:
    crew: str
    scopes: frozenset[str]
    wants_packs: bool = False
    packs: bool = False
    pending: set[str] = field(default_factory=set)
    sent: dict[str, Mapping[str, Entry]] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class ToolRegistry:
    """All tools of all agents. `run` must be a task of the owner's."""

    def __init__(self, parts: Parts, sessions: Sessions, agents: RegistryFeed) -> None:
        self._parts = parts
        self._agents = agents
        self._offers: dict[str, Offer] = {}
        self._heard: set[str] = set()
        self._entries: dict[str, dict[str, tuple[Entry, ...]]] = {}
        self._names: dict[str, dict[str, Entry]] = {}
        self._watchers: set[_Watcher] = set()
        self._mark = ""
        self._record = OfferRecord(parts)
        self._first = FirstWords()
        self.packs = CrewPacks()
        self.loaded = asyncio.Event()
        sessions.on_report = self.hear
        agents.on_change.append(self._moved)

    # What comes in

    def hear(self, session: Session, report: agent_service_pb2.AgentReport) -> None:
        """An agent says what it offers: known here at once, to others as soon as it is stored."""
        held = self._offers.get(session.agent)
        offer = tools.offered(
            session.agent,
            session.crew,
            session.generation,
            report,
            heard_at=self._parts.now(),
            heard_by=self._parts.owner,
        )
        if held is not None and held.age > offer.age:
            return
        self._offers[session.agent] = offer
        self._heard.add(session.agent)
        self._record.put(offer)
        self._refresh(session.agent)

    def _moved(self, agent: model.AgentRow) -> None:
        """An agent's row changed."""
        if agent.state is AgentState.STOPPED:
            self._offers.pop(agent.id, None)
            self._heard.discard(agent.id)
        self._refresh(agent.id, agent)
        self._first.look(agent, heard=agent.id in self._offers)
        if self.packs.take(agent):
            self._tell_packs(agent.crew)

    def _read(self, known: KnownOffer) -> None:
        """What is stored of an agent, perhaps by another process. What was heard here is not overtaken by it."""
        offer, held = known.offer, self._offers.get(known.offer.agent)
        mine = offer.heard_by == self._parts.owner
        if held is not None and (held.age > offer.age or (mine and held.age == offer.age)):
            return
        self._offers[offer.agent] = offer
        if known.heard and not mine:
            self._heard.add(offer.agent)
        else:
            self._heard.discard(offer.agent)
        self._refresh(offer.agent)

    async def run(self) -> None:
        """Write what is heard here and read what is heard elsewhere, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._record.run(), name="tools record")
            with self._parts.hub.subscribe(TOOLS) as rings:
                while True:
                    await self._advance()
                    await rings.wait(POLL_S)

    async def _advance(self) -> None:
        try:
            delta = await self._parts.store.offer_delta(self._mark)
        except FactoryError as error:
            self._parts.measures.trouble.labels("tools").inc()
            log.warning("cannot read tools", extra={"error": str(error)})
            return
        self._mark = delta.mark
        for known in delta.offers:
            self._read(known)
        self._forget_the_gone()
        self.loaded.set()

    def _forget_the_gone(self) -> None:
        """What was read of an agent as it stopped would stay for ever."""
        oldest = self._parts.now() - timedelta(seconds=KEPT_MIN_S)
        for agent, offer in list(self._offers.items()):
            if offer.heard_at < oldest and self._agents.loaded.is_set() and self._agents.find(agent) is None:
                del self._offers[agent]
                self._heard.discard(agent)

    # What is known

    def _refresh(self, agent: str, row: model.AgentRow | None = None) -> None:
        """Make an agent's entries anew, and tell watchers where they are other ones now."""
        row = row or self._agents.find(agent)
        offer = self._offers.get(agent)
        if row is None:
            return  # nobody knows its name yet: its row rings again
        if offer is not None:
            self._first.look(row, heard=True)
        fresh = () if offer is None else tools.entries(row, offer, heard=agent in self._heard)
        crew = self._entries.setdefault(row.crew, {})
        held = crew.get(agent, ())
        if held != fresh:
            crew[agent] = fresh
            self._names.pop(row.crew, None)
            if len(held) != len(fresh) or not all(map(Entry.is_as, held, fresh)):
                self._tell(row.crew)
        if not fresh:
            crew.pop(agent, None)
        if not crew:
            del self._entries[row.crew]

    def _tell(self, crew: str) -> None:
        for watcher in self._watchers:
            if watcher.crew in ("", crew):
                watcher.pending.add(crew)
                watcher.wake.set()

    def _tell_packs(self, crew: str) -> None:
        for watcher in self._watchers:
            if watcher.wants_packs and watcher.crew in ("", crew):
                watcher.packs = True
                watcher.wake.set()

    def of_crew(self, crew: str) -> Mapping[str, Entry]:
        """A crew's tools by public name, in the order of lists."""
        known = self._names.get(crew)
        if known is None:
            listed = self._entries.get(crew, {}).values()
            known = tools.by_name(entry for entries in listed for entry in entries)
            if known:
                self._names[crew] = known
        return known

    def conditions(self, agent: str) -> Sequence[types_pb2.Condition]:
        """How an agent's capabilities are, as it last said."""
        offer = self._offers.get(agent)
        return offer.conditions if offer is not None else ()

    async def list(self, crew: str, agent: str, scopes: frozenset[str], page: model.Page) -> Sequence[Entry]:
        """Tools that these scopes may use, by crew and name, at most page.size + 1. NotFound for a crew that
        nobody knows."""
        await self.spoken(crew)
        found: list[Entry] = []
        for ident in [crew] if crew else sorted(self._entries):
            for entry in self.of_crew(ident).values():
                if entry.place <= page.after or (agent and entry.agent != agent):
                    continue
                if tools.may_use(entry.tool, scopes):
                    found.append(entry)
                if len(found) > page.size:
                    return found
        return found

    async def find(self, crew: str, name: str) -> Entry:
        """The tool of this name. NotFound."""
        await self._ready()
        entry = self.of_crew(crew).get(name)
        if entry is None:
            await self.spoken(crew)
            entry = self.of_crew(crew).get(name)
        if entry is None:
            raise NotFound(f"crew '{crew}' has no tool '{name}'", resource_type="tool", resource_name=name)
        return entry

    async def spoken(self, crew: str) -> None:
        """Once those of the crew who have just begun to serve have said what they offer. NotFound for a crew that
        nobody knows."""
        await self._ready()
        if crew and crew not in self._entries:
            for agent in (await self._parts.store.get_crew(crew)).agents:
                row = self._agents.find(agent.id)  # without it the registry has no name for what it heard
                self._first.look(row or agent, heard=row is not None and agent.id in self._offers)
        await self._first.wait(crew)

    async def _ready(self) -> None:
        """A factory that has just started lists what was stored, not nothing."""
        await self._agents.loaded.wait()
        await self.loaded.wait()

    # Watching

    async def watch(
        self,
        crew: str,
        scopes: frozenset[str],
        *,
        bookmark_s: float,
        draining: asyncio.Event,
        packs: bool = False,
    ) -> AsyncGenerator[ToolChange, None]:
        """The tools as they are, then as they change; what changes twice before it is sent is sent once. With
        `packs` also that the skill packs are other ones."""
        await self._ready()
        watcher = _Watcher(crew, scopes, packs)
        self._watchers.add(watcher)
        try:
            watcher.pending.update([crew] if crew else self._entries)
            for change in self._due(watcher):
                yield change
            yield ToolChange(synced=True)
            while not draining.is_set():
                try:
                    async with asyncio.timeout(bookmark_s):
                        await watcher.wake.wait()
                except TimeoutError:
                    yield ToolChange()
                watcher.wake.clear()
                for change in self._due(watcher):
                    yield change
        finally:
            self._watchers.discard(watcher)

    def _due(self, watcher: _Watcher) -> Iterable[ToolChange]:
        """What is other than what the watcher holds."""
        if watcher.packs:
            watcher.packs = False
            yield ToolChange(packs=True)
        pending, watcher.pending = watcher.pending, set()
        for crew in sorted(pending):
            was = watcher.sent.pop(crew, {})
            now = {n: e for n, e in self.of_crew(crew).items() if tools.may_use(e.tool, watcher.scopes)}
            if now:
                watcher.sent[crew] = now
            upserted = [entry for name, entry in now.items() if not entry.is_as(was.get(name))]
            removed = [(crew, name) for name in was if name not in now]
            for i in range(0, max(len(upserted), 1 if removed else 0), BATCH_MAX):
                yield ToolChange(upserted[i : i + BATCH_MAX], removed if i == 0 else ())
