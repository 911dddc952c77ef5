"""Compare what exists with what is owned, both ways, and put the difference right."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from factory_server.core import model
from factory_server.core.errors import NotFound
from factory_server.core.lifecycle import CrewState
from factory_server.core.model import InstanceState
from factory_server.services.hub import REAPER
from factory_server.services.parts import Parts
from factory_server.services.sessions import Sessions

log = logging.getLogger("factory.sweeper")

PAGE = 500
GONE = (CrewState.DISBANDED, CrewState.FAILED)


class Sweeper:
    """One pass of `sweep` compares instances and bus users; it is safe to repeat and to run on each replica."""

    def __init__(
        self, parts: Parts, sessions: Sessions, lost_instance: Callable[[str, str, str], Awaitable[None]]
    ) -> None:
        self._parts = parts
        self._sessions = sessions
        self._lost_instance = lost_instance
        self._starting_before: frozenset[str] = frozenset()

    async def sweep(self) -> None:
        """Instances first, then the bus."""
        await self._sweep_instances()
        await self._sweep_bus()

    async def _sweep_instances(self) -> None:
        """Rows are read before and after the sandboxes, so that neither a birth nor a death in between is
        taken for a leak or a loss."""
        before = {r.id: r for r in await self._parts.store.list_instances()}
        exist = {s.instance for s in await self._parts.driver.list()}
        after = {r.id: r for r in await self._parts.store.list_instances()}
        for orphan in exist - before.keys() - after.keys():
            self._parts.measures.swept.labels("sandbox").inc()
            log.warning("sandbox without an owner", extra={"action": "sweep", "instance": orphan})
            await self._parts.driver.destroy(orphan)
        for row in after.values():
            if row.id not in before or row.id in exist or before[row.id].state is not row.state:
                continue
            await self._sweep_row(row)
        self._starting_before = frozenset(
            r.id
            for r in after.values()
            if r.state is InstanceState.STARTING and r.id not in exist and not r.agent
        )

    async def _sweep_row(self, row: model.InstanceRow) -> None:
        """A row whose sandbox does not exist."""
        match row.state:
            case InstanceState.OWNED if row.control:
                await self._lost_instance(row.id, "InstanceGone", "its instance does not exist any more")
            case InstanceState.WARM:
                await self._parts.store.release_instance(row.id)
                self._parts.hub.ring(REAPER)
            case InstanceState.STARTING if not row.agent and row.id in self._starting_before:
                # Still not there a whole sweep later: whoever meant to make it is gone.
                await self._parts.store.release_instance(row.id)
                self._parts.hub.ring(REAPER)
            case InstanceState.STARTING | InstanceState.OWNED | InstanceState.DYING:
                return

    async def _sweep_bus(self) -> None:
        crews = set(await self._parts.bus.list_crews())
        users = list(await self._parts.bus.list_users())
        alive = {a.id: a for a in await self._all_agents()}
        for crew, agent, generation in users:
            row = alive.get(agent)
            if row is None or generation < row.generation:
                self._parts.measures.swept.labels("bus_user").inc()
                await self._parts.bus.revoke(crew, agent, generation)
        for crew in crews - {a.crew for a in alive.values()}:
            if await self._crew_is_gone(crew):
                self._parts.measures.swept.labels("bus_crew").inc()
                await self._parts.bus.drop_crew(crew)

    async def _crew_is_gone(self, crew: str) -> bool:
        try:
            return (await self._parts.store.get_crew(crew)).state in GONE
        except NotFound:
            return True

    async def _all_agents(self) -> list[model.AgentRow]:
        agents: list[model.AgentRow] = []
        after = ""
        while True:
            page = await self._parts.store.list_agents(model.AgentFilter(), model.Page(PAGE, after))
            agents += page[:PAGE]
            if len(page) <= PAGE:
                return agents
            after = agents[-1].id
