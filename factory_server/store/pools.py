"""Keep warm instances in store: never more than wished, whoever fills."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

from psycopg.rows import DictRow

from factory_server.core import ids
from factory_server.core.model import InstanceRow, PoolRow, RequestKey, SandboxFact
from factory_server.store import encode
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request
from factory_server.store.rows import instance_row

STARTING_MAX_S = 120.0
"""An intent older than this belongs to a factory that died while it filled."""
WARM_PREFIX = "w"


class Pools(Part):
    """The warm pool of each base."""

    async def get_pools(self) -> Sequence[PoolRow]:
        """Return all pools with their counts."""

        async def body(transaction: Transaction) -> Sequence[PoolRow]:
            return [_pool_row(row) for row in await transaction.rows("pools_get", base="")]

        return await self._db.read(body)

    async def set_pool(self, base: str, target: int, request: RequestKey | None, actor: str) -> PoolRow:
        """Set the size; surplus WARM instances become DYING."""

        async def body(transaction: Transaction) -> PoolRow:
            if await claim_request(transaction, request, base) is None:
                await transaction.send("pool_set", base=base, target=target)
                await transaction.send("pool_trim", base=base, target=target)
            return _pool_row(await transaction.one("pools_get", base=base))

        return await self._db.run(body)

    async def plan_refill(self, base: str, limit: int, maker: str) -> Sequence[InstanceRow]:
        """Count and insert STARTING intents under one lock per base, at most up to the target."""

        async def body(transaction: Transaction) -> Sequence[InstanceRow]:
            pool = await transaction.row("pool_lock", base=base)
            if pool is None:
                return []
            await transaction.send("pool_expire", base=base, starting_s=STARTING_MAX_S)
            # A statement of its own: it must see what the last holder of the lock has committed.
            filled = (await transaction.one("pool_filled", base=base))["filled"]
            count = min(limit, pool["target"] - filled)
            if count <= 0:
                if filled > pool["target"]:  # an instance that was STARTING when the pool shrank
                    await transaction.send("pool_trim", base=base, target=pool["target"])
                return []
            fresh = [warm_id(pool["now"]) for _ in range(count)]
            rows = await transaction.rows("pool_intend", base=base, ids=fresh, maker=maker)
            return [instance_row(row) for row in rows]

        return await self._db.run(body)

    async def abandon_refill(self, maker: str) -> None:
        """Nobody makes what this maker has begun: STARTING → DYING."""

        async def body(transaction: Transaction) -> None:
            await transaction.send("pool_abandon", maker=maker)

        await self._db.run(body)

    async def pool_started(self, fact: SandboxFact) -> bool:
        """STARTING → WARM; False where it is not wished any more."""

        async def body(transaction: Transaction) -> bool:
            started = await transaction.row(
                "pool_started",
                id=fact.instance,
                driver=fact.driver,
                control=fact.control,
                host_pid=fact.host_pid,
                container_id=fact.container_id,
            )
            return started is not None

        return await self._db.run(body)

    async def pool_degraded(self, base: str, reason: str, message: str) -> None:
        """Set the pool's trouble; '' clears it."""

        async def body(transaction: Transaction) -> None:
            await transaction.send("pool_degraded", base=base, reason=reason, message=encode.text(message))

        await self._db.run(body)


def warm_id(now: datetime) -> str:
    """A fresh name for an instance that is nobody's yet."""
    return ids.make_id(WARM_PREFIX, int(now.timestamp() * 1000), secrets.token_bytes(5))


def _pool_row(r: DictRow) -> PoolRow:
    return PoolRow(
        base=r["base"],
        target=r["target"],
        ready=r["ready"],
        starting=r["starting"],
        claimed=r["claimed"],
        missed=r["missed"],
        degraded_reason=r["degraded_reason"],
        degraded_message=r["degraded_message"],
        degraded_since=r["degraded_since"],
    )
