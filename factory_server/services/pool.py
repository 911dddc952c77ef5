"""Keep warm instances waiting: fill to the target, one at a time, never in the way of a claim."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from factory_server.core import model
from factory_server.core.causes import cause_of
from factory_server.core.errors import FactoryError, FieldViolation, Invalid
from factory_server.core.sandbox import SandboxSpec
from factory_server.services.hub import POOL, REAPER
from factory_server.services.lines import Lines
from factory_server.services.parts import Parts
from factory_server.services.requests import key_of
from hyperfactory.v1 import factory_service_pb2

log = logging.getLogger("factory.pool")

CREATE_DEADLINE_S = 30.0
PLAIN = "python"
"""The base that is always there: where its image is missing, the pool says so."""
YIELD_S = 0.02
YIELD_MAX_S = 2.0
"""Refilling waits at most so long for claims in flight, so that steady load cannot starve it."""


class PoolLane:
    """The refill lane of this process; several processes share the target without overfilling."""

    def __init__(self, parts: Parts, lines: Lines, claims_in_flight: Callable[[], bool]) -> None:
        self._parts = parts
        self._lines = lines
        self._claims_in_flight = claims_in_flight
        self._succeeded = False

    async def fill(self) -> None:
        """Fill every pool to its target; a base that cannot be made delays no other."""
        await self._succeed()
        failures: list[FactoryError] = []
        pools = await self._parts.store.get_pools()
        await self._parts.images.look_at(pool.base for pool in pools)
        for pool in pools:
            self._parts.measures.pool_ready.labels(pool.base).set(pool.ready)
            self._parts.measures.pool_target.labels(pool.base).set(pool.target)
            try:
                await self._fill_one(pool)
            except FactoryError as error:
                failures.append(error)
        await self._warm_lines()
        if failures:
            raise failures[0]

    async def _succeed(self) -> None:
        """Once: what our predecessor had begun to make, nobody makes any more."""
        if not self._succeeded:
            await self._parts.store.abandon_refill(self._parts.owner)
            self._succeeded = True
            self._parts.hub.ring(REAPER)

    async def _warm_lines(self) -> None:
        """Hold a line to each instance that waits, also to those that another process made."""
        rows = await self._parts.store.list_instances()
        waiting = {r.control for r in rows if r.state is model.InstanceState.WARM and r.control}
        await self._lines.keep(waiting)
        for control in waiting:
            await self._lines.warm(control)

    async def _fill_one(self, pool: model.PoolRow) -> None:
        while True:
            await self._yield_to_claims()
            intents = await self._parts.store.plan_refill(pool.base, 1, self._parts.owner)
            if not intents:
                if pool.degraded_reason and pool.ready >= pool.target:
                    await self._parts.store.pool_degraded(pool.base, "", "")  # nothing is missing any more
                return
            await self._make(pool, intents[0])

    async def _yield_to_claims(self) -> None:
        waited_s = 0.0
        while self._claims_in_flight() and waited_s < YIELD_MAX_S:
            await asyncio.sleep(YIELD_S)
            waited_s += YIELD_S

    async def _make(self, pool: model.PoolRow, intent: model.InstanceRow) -> None:
        try:
            sandbox = await self._parts.driver.create(
                SandboxSpec(instance=intent.id, base=intent.base, labels={"pool": intent.base}),
                deadline_s=CREATE_DEADLINE_S,
            )
        except FactoryError as error:
            await self._parts.store.pool_degraded(pool.base, cause_of(error).value, str(error))
            await self._parts.store.release_instance(intent.id)
            self._parts.hub.ring(REAPER)
            raise
        fact = model.SandboxFact(
            sandbox.instance, sandbox.driver, sandbox.control, sandbox.host_pid, sandbox.container_id
        )
        await self._lines.warm(sandbox.control)
        if not await self._parts.store.pool_started(fact):
            await self._parts.store.release_instance(intent.id)
            self._parts.hub.ring(REAPER)
        if pool.degraded_reason:
            await self._parts.store.pool_degraded(pool.base, "", "")


async def get_pools(parts: Parts) -> Sequence[model.PoolRow]:
    """All pools."""
    return await parts.store.get_pools()


async def update_pool(
    parts: Parts, request: factory_service_pb2.UpdatePoolRequest, actor: str
) -> model.PoolRow:
    """Set a pool's size; filling follows. Invalid for a base that is not there."""
    key = key_of(actor, "UpdatePool", request.request_id, request)
    base = request.base or PLAIN
    await _check_base(parts, base, request.target)
    row = await parts.store.set_pool(base, request.target, key, actor)
    parts.hub.ring(POOL)
    parts.hub.ring(REAPER)
    return row


async def _check_base(parts: Parts, base: str, target: int) -> None:
    """The runtime's own base needs no looking; a pool of another that is gone can still be emptied."""
    if base == PLAIN or await parts.images.has_base(base):
        return
    if target == 0 and base in {pool.base for pool in await parts.store.get_pools()}:
        return
    raise Invalid(
        f"cannot keep a pool of '{base}': there is no such base",
        violations=[FieldViolation("base", "is neither `python` nor a base that the driver has")],
    )
