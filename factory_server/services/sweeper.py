"""Compare what exists with what is owned, both ways, and put the difference right."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from factory_server.core import model
from factory_server.core.errors import FactoryError, NotFound
from factory_server.core.lifecycle import CREW_ENDED, AgentState
from factory_server.core.model import InstanceState
from factory_server.services import networks
from factory_server.services.hub import REAPER
from factory_server.services.parts import Parts
from factory_server.services.pool import CREATE_DEADLINE_S
from factory_server.services.sessions import Sessions

log = logging.getLogger("factory.sweeper")

PAGE = 500
CREATE_SLACK_S = 2.0
WITHOUT_INSTANCE = (AgentState.FAILED, AgentState.HIBERNATING)


class Sweeper:
    """One pass of `sweep` compares instances and bus users; it is safe to repeat and to run on each replica."""

    def __init__(
        self, parts: Parts, sessions: Sessions, lost_instance: Callable[[str, str, str], Awaitable[None]]
    ) -> None:
        self._parts = parts
        self._sessions = sessions
        self._lost_instance = lost_instance
        self._starting: dict[str, float] = {}
        """When the pool's intents were first seen."""

    async def sweep(self) -> None:
        """Instances first, then the bus and the ways out. What resists delays nothing else; its error is raised
        at the end."""
        errors = [error async for error in self._errors()]
        if errors:
            raise errors[0]

    async def _errors(self) -> AsyncIterator[FactoryError]:
        for sweep in (self._sweep_instances, self._sweep_networks, self._sweep_bus, self._sweep_egress):
            try:
                async for work in sweep():
                    try:
                        await work
                    except FactoryError as error:
                        yield error
            except FactoryError as error:
                yield error

    async def _sweep_instances(self) -> AsyncIterator[Awaitable[None]]:
        """Rows are read before and after the sandboxes, so that neither a birth nor a death in between is
        taken for a leak or a loss."""
        before = {r.id: r for r in await self._parts.store.list_instances()}
        exist = {s.instance for s in await self._parts.driver.list()}
        after = {r.id: r for r in await self._parts.store.list_instances()}
        for orphan in exist - before.keys() - after.keys():
            self._parts.measures.swept.labels("sandbox").inc()
            log.warning("sandbox without an owner", extra={"action": "sweep", "instance": orphan})
            yield self._parts.driver.destroy(orphan)
        self._note_starting(after.values())
        for row in after.values():
            if row.id in self._starting and self._is_abandoned(row.id):
                yield self._release(row.id)
            elif row.id in before and row.id not in exist and before[row.id].state is row.state:
                yield self._sweep_row(row)

    def _note_starting(self, rows: Iterable[model.InstanceRow]) -> None:
        now = time.monotonic()
        starting = [r.id for r in rows if r.state is InstanceState.STARTING and not r.agent]
        self._starting = {instance: self._starting.get(instance, now) for instance in starting}

    def _is_abandoned(self, instance: str) -> bool:
        """Nobody makes an instance for so long: whoever meant to is gone."""
        return time.monotonic() - self._starting[instance] > CREATE_DEADLINE_S + CREATE_SLACK_S

    async def _release(self, instance: str) -> None:
        await self._parts.store.release_instance(instance)
        self._parts.hub.ring(REAPER)

    async def _sweep_row(self, row: model.InstanceRow) -> None:
        """A row whose sandbox does not exist."""
        match row.state:
            case InstanceState.OWNED if row.control:
                await self._lost_instance(row.id, "InstanceGone", "its instance does not exist any more")
            case InstanceState.WARM:
                await self._release(row.id)
            case InstanceState.STARTING | InstanceState.OWNED | InstanceState.DYING:
                return

    async def _sweep_bus(self) -> AsyncIterator[Awaitable[None]]:
        crews = set(await self._parts.bus.list_crews())
        users = list(await self._parts.bus.list_users())
        alive = {a.id: a for a in await self._all_agents()}
        for crew, agent, generation in users:
            row = alive.get(agent)
            if row is None or generation < row.generation or row.state in WITHOUT_INSTANCE:
                self._parts.measures.swept.labels("bus_user").inc()
                yield self._parts.bus.revoke(crew, agent, generation)
        for crew in crews - {a.crew for a in alive.values()}:
            if await self._crew_is_gone(crew):
                self._parts.measures.swept.labels("bus_crew").inc()
                yield self._parts.bus.drop_crew(crew)

    async def _sweep_egress(self) -> AsyncIterator[Awaitable[None]]:
        for crew in await self._parts.egress.list_crews():
            if await self._crew_is_gone(crew):
                self._parts.measures.swept.labels("egress").inc()
                yield self._parts.egress.close(crew)

    def _sweep_networks(self) -> AsyncIterator[Awaitable[None]]:
        return networks.sweep(self._parts, self._crew_is_gone)

    async def _crew_is_gone(self, crew: str) -> bool:
        try:
            return (await self._parts.store.get_crew(crew)).state in CREW_ENDED
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
