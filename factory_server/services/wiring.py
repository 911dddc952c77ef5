"""Wire a crew: each instance sees the sockets of its live mates and of the bus, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from factory_server.core.errors import FactoryError, NotFound
from factory_server.core.lifecycle import SERVING, AgentState
from factory_server.core.model import AgentRow
from factory_server.services.doorsteps import Doorsteps
from factory_server.services.parts import Parts

log = logging.getLogger("factory.wiring")

UNIX = "unix://"
BUS_LINK = "bus.sock"
EGRESS_LINK = "egress.sock"
WIRED = (AgentState.WARMING, *SERVING)


class Wiring:
    """The wiring of one crew, brought to what the rows say. Level-triggered: say `rewire` after any change."""

    def __init__(
        self, parts: Parts, share_names: Callable[[Iterable[AgentRow]], Awaitable[None]] | None = None
    ) -> None:
        self._parts = parts
        self._share_names = share_names
        self._published: dict[str, tuple[int, str]] = {}
        self._applied: dict[str, Mapping[str, str]] = {}
        self._lock = asyncio.Lock()
        self._wanted = 0
        self._done = 0
        self._signature: frozenset[tuple[str, str, str]] = frozenset()
        self._renewals = 0
        self._egress = ""
        self._doorsteps = Doorsteps(parts)
        self.leads_out = False
        """Whether the crew may reach the outside; its socket may come later."""

    def publish(self, agent: AgentRow, direct: str) -> None:
        """From here on the agent's mates see this socket, though its row does not yet say READY."""
        self._published[agent.id] = (agent.generation, direct)

    async def introduce(self, agent: AgentRow) -> None:
        """Give a fresh instance the bus, so that it can be assumed."""
        if agent.instance is not None and agent.instance.id not in self._applied:
            links = self._shared()
            renewals = self._renewals
            await self._parts.driver.wire(agent.instance.id, links)
            if renewals == self._renewals:
                self._applied[agent.instance.id] = links

    async def rewire(self, agents: Iterable[AgentRow]) -> None:
        """Apply what the rows say now; calls that wait join the next application."""
        self._wanted += 1
        mine = self._wanted
        async with self._lock:
            if self._done >= mine:
                return
            upto = self._wanted
            await self._apply(list(agents))
            self._done = upto

    def lead_out(self, socket: str) -> None:
        """From here on members see this socket as their way out; '' for none."""
        if socket != self._egress:
            self._egress = socket
            self.renew()

    def close(self) -> None:
        """Nobody waits here for sleepers any more."""
        self._doorsteps.close()

    def renew(self) -> None:
        """A shared socket is another one: every link must be made anew."""
        self._renewals += 1
        self._applied.clear()
        self._signature = frozenset()

    async def _apply(self, agents: list[AgentRow]) -> None:
        if self._share_names is not None:
            await self._share_names(a for a in agents if a.state in WIRED)
        await self._doorsteps.open(agents)
        doors = {(a.name, "", path) for a in agents if (path := self._doorsteps.path(a))}
        signature = doors | frozenset(
            (a.name, a.instance.id, self._socket(a))
            for a in agents
            if a.instance is not None and a.state in WIRED
        )
        renewals = self._renewals
        complete = signature == self._signature or await self._apply_links(agents)
        if complete and renewals == self._renewals:
            self._signature = frozenset(signature)
            self._doorsteps.close(a.id for a in agents if self._socket(a) == self._doorsteps.path(a) != "")

    async def _apply_links(self, agents: list[AgentRow]) -> bool:
        """Whether everything that should be wired is."""
        complete = True
        renewals = self._renewals
        sockets = {f"{a.name}.sock": path for a in agents if (path := self._socket(a))}
        sockets |= self._shared()
        wished = {a.instance.id: a for a in agents if a.instance is not None and a.state in WIRED}
        for gone in self._applied.keys() - wished.keys():
            del self._applied[gone]
        for gone in self._published.keys() - {a.id for a in agents}:
            del self._published[gone]
        for instance, agent in wished.items():
            links = {name: path for name, path in sockets.items() if name != f"{agent.name}.sock"}
            if self._applied.get(instance) == links:
                continue
            try:
                await self._parts.driver.wire(instance, links)
            except NotFound:
                continue  # it is gone; its exit is on the way
            except FactoryError as error:
                log.warning("cannot wire", extra={"instance": instance, "error": str(error)})
                complete = False
                continue
            if renewals == self._renewals:
                self._applied[instance] = links
        return complete

    def _shared(self) -> dict[str, str]:
        """What every member sees beside its mates."""
        links = {BUS_LINK: self._parts.bus.socket_path}
        return links | ({EGRESS_LINK: self._egress} if self._egress else {})

    def _socket(self, agent: AgentRow) -> str:
        generation, direct = self._published.get(agent.id, (0, ""))
        if direct and generation == agent.generation and agent.state in WIRED and agent.frozen_at is None:
            return direct.removeprefix(UNIX)
        if agent.serves and agent.instance is not None:
            return agent.instance.direct.removeprefix(UNIX)
        return self._doorsteps.path(agent)
