"""Give crews that wish one a network of their own: admitted first, ready in advance, gone with its crew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace as with_fields

from factory_server.core import model, networks
from factory_server.core.errors import Exhausted, FactoryError, NotFound, Refused, Unavailable
from factory_server.core.lifecycle import AgentState
from factory_server.core.networks import NetworkRow, NetworkSpec, NetworkState, NetworkWish
from factory_server.services.cells import Cells
from factory_server.services.hub import NETWORKS, REAPER
from factory_server.services.parts import Parts
from hyperfactory.v1 import crew_service_pb2

log = logging.getLogger("factory.networks")

READY_TARGET = 2
"""So many wait for the next crews, once a crew had wished one."""
CREATE_DEADLINE_S = 20.0
JOIN_DEADLINE_S = 20.0
YIELD_S = 0.02
YIELD_MAX_S = 2.0
"""Making networks ahead waits at most so long for crews that are being assembled."""


async def admit(parts: Parts, plan: model.CrewPlan, *, only_check: bool = False) -> model.CrewPlan:
    """The plan with the network that it wishes, if any. Invalid (too many members), Refused (the driver has no
    networks), Exhausted. Whether there is room is decided where the plan is recorded, unless that never comes."""
    if not networks.wished(plan.manifest, [agent.spec for agent in plan.agents]):
        return plan
    members = len(plan.agents)
    prefix = networks.prefix_for(members)
    wish = NetworkWish(prefix, members, await parts.driver.networks.limits())
    if only_check:
        networks.admit(wish, await parts.store.network_use())
    manifest = crew_service_pb2.CrewManifest()
    manifest.CopyFrom(plan.manifest)
    manifest.network.mode = crew_service_pb2.NETWORK_MODE_BRIDGE
    return with_fields(plan, manifest=manifest, network=wish)


async def admit_members(
    parts: Parts, crew: str, plans: Sequence[model.AgentPlan], key: model.RequestKey
) -> None:
    """Whether the crew's network, or its lack of one, allows these as further members; a repeated request is let
    pass. Refused, Exhausted, NotFound."""
    row = await parts.store.crew_network(crew)
    if row is None and not any(plan.spec.tcp_ports for plan in plans):
        return
    found = await parts.store.get_crew(crew)
    mode = found.manifest.network.mode
    present = sum(agent.state is not AgentState.STOPPED for agent in found.agents)
    if row is None and mode == crew_service_pb2.NETWORK_MODE_UNSPECIFIED:
        plan = next(plan for plan in plans if plan.spec.tcp_ports)
        raise Refused(
            f"cannot add agent '{plan.name}': profile '{plan.profile}' declares TCP ports, and crew '{crew}' was "
            "assembled without a network",
            metadata={"profile": plan.profile},
        )
    if row is None or present + len(plans) <= networks.members_max(row.prefix):
        return
    if await parts.store.find_request(key) is None:
        raise Exhausted(
            f"cannot add {len(plans)} to the network of crew '{crew}': it holds {present} members, at most "
            f"{networks.members_max(row.prefix)}",
            quota="addresses",
        )


class CrewNetwork:
    """The network of one crew, as its keeper sees it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = asyncio.Lock()
        self._network = ""
        self._names: dict[str, str] = {}
        self._told: dict[str, dict[str, str]] = {}

    async def share_names(self, agents: Iterable[model.AgentRow]) -> None:
        """Tell every member, also one that joins only now, the names of those that came with a cell: whoever joins
        brings its own. What resists is tried again with the next call."""
        carriers = [(agent, agent.instance) for agent in agents if agent.instance is not None]
        if not any(instance.address for _, instance in carriers):
            return
        names = {
            name: instance.address
            for agent, instance in carriers
            if instance.network
            for name in networks.names_of(agent.name, agent.crew)
        }
        if names != self._names:
            self._names = names
        self._told = {i.id: self._told[i.id] for _, i in carriers if i.id in self._told}
        for _, instance in carriers:
            if self._told.get(instance.id) is not self._names:
                await self._tell(instance.id, self._names)

    async def _tell(self, instance: str, names: dict[str, str]) -> None:
        try:
            await self._parts.driver.networks.tell(instance, names)
        except NotFound:
            return  # it is gone; its exit is on the way
        except FactoryError as error:
            self._parts.measures.trouble.labels("names").inc()
            log.warning("cannot tell names", extra={"instance": instance, "error": str(error)})
        else:
            self._told[instance] = names

    async def join(self, agent: model.AgentRow, crew: model.CrewRow | None) -> model.AgentRow:
        """The agent, with its address where its crew has a network. Raises what the driver and the store raise."""
        if crew is None or not _bridged(crew) or agent.instance is None or agent.instance.address:
            return agent
        network = await self._opened(crew.id)
        names = networks.names_of(agent.name, crew.id)
        try:
            address = await self._parts.driver.networks.join(
                agent.instance.id, network, names, deadline_s=JOIN_DEADLINE_S
            )
        except NotFound:
            self._network = ""  # look again: it may have been removed behind our back
            raise
        await self._parts.store.record_address(agent.instance.id, address)
        return with_fields(agent, instance=with_fields(agent.instance, address=address))

    async def _opened(self, crew: str) -> str:
        """Its name, once it exists and is closed."""
        async with self._lock:
            if not self._network:
                row = await self._parts.store.crew_network(crew)
                if row is None or await _make(self._parts, row, {"crew": crew}) is None:
                    raise Unavailable(f"crew '{crew}' has no network any more")
                self._network = row.id
                self._parts.hub.ring(NETWORKS)  # it may have been one of those that waited
            return self._network

    async def leave(self, crew: model.CrewRow) -> None:
        """Nobody is left: take it away now or, where the engine does not answer, by the lane later."""
        if not _bridged(crew):
            return
        row = await self._parts.store.crew_network(crew.id)
        if row is None:
            return
        await self._parts.store.release_networks([row.id])
        self._parts.hub.ring(REAPER)  # for members of its cell that no agent took
        try:
            await _destroy(self._parts, row.id)
        except FactoryError as error:
            self._parts.measures.trouble.labels("network").inc()
            log.warning("cannot remove a network yet", extra={"crew": crew.id, "error": str(error)})


class NetworkLane:
    """Makes networks ahead and takes away what nobody needs; one at a time, never in the way of a crew."""

    def __init__(self, parts: Parts, crews_in_making: Callable[[], bool]) -> None:
        self._parts = parts
        self._crews_in_making = crews_in_making
        self._cells = Cells(parts, self._yield_to_crews)

    async def tend(self) -> None:
        """One pass. What resists delays nothing else; its error is raised at the end."""
        failures: list[FactoryError] = []
        rows = await self._parts.store.list_networks()
        for row in rows:
            if row.state is NetworkState.DYING:
                try:
                    await _destroy(self._parts, row.id)
                except FactoryError as error:
                    failures.append(error)
        plain = [r for r in rows if r.state is not NetworkState.DYING and (r.crew or not r.members)]
        waiting = [r for r in plain if not r.crew and r.prefix == networks.POOL_PREFIX]
        for row in waiting:
            if row.state is NetworkState.STARTING:  # whoever began may be gone; making it twice makes it once
                await self._yield_to_crews()
                await _make(self._parts, row, {})
        if plain and len(waiting) < READY_TARGET:
            await self._fill()
        await self._cells.tend()
        if failures:
            raise failures[0]

    async def _fill(self) -> None:
        prefix = networks.POOL_PREFIX
        wish = NetworkWish(prefix, 0, await self._parts.driver.networks.limits())
        while True:
            await self._yield_to_crews()
            row = await self._parts.store.plan_network(prefix, READY_TARGET, wish)
            if row is None:
                return
            try:
                await _make(self._parts, row, {})
            except FactoryError:
                await self._parts.store.release_networks([row.id])
                raise

    async def _yield_to_crews(self) -> None:
        waited_s = 0.0
        while self._crews_in_making() and waited_s < YIELD_MAX_S:
            await asyncio.sleep(YIELD_S)
            waited_s += YIELD_S


async def sweep(
    parts: Parts, crew_is_gone: Callable[[str], Awaitable[bool]]
) -> AsyncIterator[Awaitable[None]]:
    """What must be done so that what exists is what is owned; rows are read before and after."""
    before = {row.id: row for row in await parts.store.list_networks()}
    exist = {network.network for network in await parts.driver.networks.list()}
    if not before and not exist:
        return
    after = {row.id: row for row in await parts.store.list_networks()}
    for orphan in exist - before.keys() - after.keys():
        parts.measures.swept.labels("network").inc()
        log.warning("network without an owner", extra={"action": "sweep", "network": orphan})
        yield parts.driver.networks.destroy(orphan)
    for row in after.values():
        lost = row.id in before and row.id not in exist and row.state is NetworkState.READY
        if lost or (row.crew and row.state is not NetworkState.DYING and await crew_is_gone(row.crew)):
            yield parts.store.release_networks([row.id])
    parts.hub.ring(NETWORKS)


async def _make(parts: Parts, row: NetworkRow, labels: dict[str, str]) -> NetworkRow | None:
    """Have the network exist, and say so; None where nobody wishes it any more, and it does not stay."""
    spec = NetworkSpec(row.id, row.prefix, labels)
    made = await parts.driver.networks.create(spec, deadline_s=CREATE_DEADLINE_S)
    started = await parts.store.network_started(row.id, made.subnet)
    if started is None:
        await parts.driver.networks.destroy(row.id)
    return started


async def _destroy(parts: Parts, network: str) -> None:
    await parts.driver.networks.destroy(network)
    await parts.store.forget_network(network)


def _bridged(crew: model.CrewRow) -> bool:
    return crew.manifest.network.mode == crew_service_pb2.NETWORK_MODE_BRIDGE
