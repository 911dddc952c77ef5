"""Keep cells ready: networks whose members are there already, so that a crew is only told who it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from factory_server.core import model, networks
from factory_server.core.errors import FactoryError, Unavailable
from factory_server.core.networks import NetworkRow, NetworkSpec, NetworkWish
from factory_server.core.sandbox import SandboxSpec
from factory_server.services.hub import NETWORKS, POOL, REAPER
from factory_server.services.parts import Parts

BASE = "python"
NETWORK_DEADLINE_S = 20.0
CREATE_DEADLINE_S = 30.0
LABEL = {"pool": "cell"}
"""As of those for the pools: the driver makes them in the lane that delays no claim."""


class Cells:
    """The cells of this process; several processes share the target without overfilling."""

    def __init__(self, parts: Parts, yield_to_crews: Callable[[], Awaitable[None]]) -> None:
        self._parts = parts
        self._yield_to_crews = yield_to_crews

    async def tend(self) -> None:
        """Give up what is broken, and make what is missing; one instance at a time."""
        if await self._parts.store.end_broken_cells(self._parts.owner):
            self._parts.hub.ring(REAPER)
            self._parts.hub.ring(NETWORKS)
        target, members = self._parts.cells
        if not target:
            return
        limits = await self._parts.driver.networks.limits()
        wish = NetworkWish(networks.POOL_PREFIX, members, limits)
        while True:
            await self._yield_to_crews()
            row = await self._parts.store.plan_network(wish.prefix, target, wish, self._parts.owner)
            if row is None:
                return
            try:
                await self._make(row)
            except FactoryError:
                await self._parts.store.release_networks([row.id])
                self._parts.hub.ring(REAPER)
                raise

    async def _make(self, row: NetworkRow) -> None:
        spec = NetworkSpec(row.id, row.prefix, LABEL)
        made = await self._parts.driver.networks.create(spec, deadline_s=NETWORK_DEADLINE_S)
        for _ in range(row.members):
            await self._yield_to_crews()
            await self._add_member(row)
        if await self._parts.store.network_started(row.id, made.subnet) is None:
            raise Unavailable(f"cell '{row.id}' is not wished any more")
        self._parts.hub.ring(POOL)  # which holds a line to each of its members

    async def _add_member(self, row: NetworkRow) -> None:
        intent = await self._parts.store.plan_member(row.id, BASE)
        if intent is None:
            raise Unavailable(f"cell '{row.id}' is not wished any more")
        sandbox = await self._parts.driver.create(
            SandboxSpec(intent.id, BASE, labels=LABEL), deadline_s=CREATE_DEADLINE_S
        )
        # Without names: what it will be called, it is told when it is somebody.
        address = await self._parts.driver.networks.join(intent.id, row.id, (), deadline_s=NETWORK_DEADLINE_S)
        fact = model.SandboxFact(
            sandbox.instance, sandbox.driver, sandbox.control, sandbox.host_pid, sandbox.container_id
        )
        if not await self._parts.store.member_started(fact, address):
            raise Unavailable(f"cell '{row.id}' lost a member")
