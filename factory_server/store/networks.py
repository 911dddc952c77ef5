"""Keep crews' networks: one for each crew that wishes one, a few that wait, never more than there is room for."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

from psycopg.rows import DictRow

from factory_server.core import ids
from factory_server.core.errors import Exhausted
from factory_server.core.model import InstanceRow, SandboxFact
from factory_server.core.networks import NetworkRow, NetworkState, NetworkUse, NetworkWish, admit
from factory_server.store.pool import Part, Transaction
from factory_server.store.pools import warm_id
from factory_server.store.rows import instance_row

STARTING_MAX_S = 120.0
"""An intent older than this belongs to a factory that died while it filled."""
NETWORK_PREFIX = "n"
_TOLD = ("driver", "control", "host_pid", "container_id")


class Networks(Part):
    """Networks from wish to oblivion."""

    async def network_use(self) -> NetworkUse:
        """Return what is taken."""

        async def body(transaction: Transaction) -> NetworkUse:
            return await _use(transaction, "")

        return await self._db.read(body)

    async def plan_network(
        self, prefix: int, target: int, wish: NetworkWish, maker: str = ""
    ) -> NetworkRow | None:
        """Intend one for the pool, under the lock; None where it is full."""
        cells = wish.members > 0

        async def body(transaction: Transaction) -> NetworkRow | None:
            now = (await transaction.one("networks_lock"))["now"]
            await transaction.send("networks_expire", starting_s=STARTING_MAX_S)
            # A statement of its own: it must see what the last holder of the lock has committed.
            filled = (await transaction.one("networks_filled", prefix=prefix, cells=cells))["filled"]
            if filled >= target:
                return None
            try:
                admit(wish, await _use(transaction, ""))
            except Exhausted:
                return None
            return await _intend(transaction, prefix, None, now, wish.members, maker)

        return await self._db.run(body)

    async def network_started(self, network: str, subnet: str) -> NetworkRow | None:
        """STARTING → OWNED or READY; None where it is not wished any more."""

        async def body(transaction: Transaction) -> NetworkRow | None:
            row = await transaction.row("network_started", id=network, subnet=subnet)
            return None if row is None else _row(row)

        return await self._db.run(body)

    async def crew_network(self, crew: str) -> NetworkRow | None:
        """Return the crew's own."""

        async def body(transaction: Transaction) -> NetworkRow | None:
            row = await transaction.row("network_of_crew", crew=crew)
            return None if row is None else _row(row)

        return await self._db.read(body)

    async def list_networks(self) -> Sequence[NetworkRow]:
        """Return all rows."""

        async def body(transaction: Transaction) -> Sequence[NetworkRow]:
            return [_row(row) for row in await transaction.rows("networks_list")]

        return await self._db.read(body)

    async def release_networks(self, networks: Sequence[str]) -> None:
        """Mark networks DYING, from whatever state."""

        async def body(transaction: Transaction) -> None:
            await transaction.send("networks_release", networks=list(networks))
            await transaction.send("cells_orphaned")

        await self._db.run(body)

    async def plan_member(self, network: str, base: str) -> InstanceRow | None:
        """Intend a member of a cell that is being made."""

        async def body(transaction: Transaction) -> InstanceRow | None:
            now = (await transaction.one("database_now"))["now"]
            row = await transaction.row("cell_member_intend", id=warm_id(now), base=base, network=network)
            return None if row is None else instance_row(row)

        return await self._db.run(body)

    async def member_started(self, fact: SandboxFact, address: str) -> bool:
        """STARTING → WARM, with its address."""

        async def body(transaction: Transaction) -> bool:
            told = {name: getattr(fact, name) for name in _TOLD}
            row = await transaction.row("cell_member_started", id=fact.instance, address=address, **told)
            return row is not None

        return await self._db.run(body)

    async def end_broken_cells(self, maker: str) -> bool:
        """DYING: cells that lack members, those that this maker has begun, and who waited in either."""

        async def body(transaction: Transaction) -> bool:
            await transaction.send("cells_broken", maker=maker)
            return bool(await transaction.rows("cells_orphaned"))

        return await self._db.run(body)

    async def forget_network(self, network: str) -> None:
        """Delete the row of a network that is destroyed."""

        async def body(transaction: Transaction) -> None:
            await transaction.send("network_forget", id=network)

        await self._db.run(body)

    async def record_address(self, instance: str, address: str) -> None:
        """Note where an instance is on its crew's network."""

        async def body(transaction: Transaction) -> None:
            transaction.agents = bool(await transaction.rows("agents_touch", instances=[instance]))
            await transaction.send("instance_address", instance=instance, address=address)

        await self._db.run(body)


async def take(transaction: Transaction, crew: str, wish: NetworkWish) -> None:
    """Give a crew that is being recorded one that waits, or the intent of one. Exhausted without room."""
    if await transaction.row("network_claim", crew=crew, prefix=wish.prefix) is None:
        now = (await transaction.one("networks_lock"))["now"]
        await _intend(transaction, wish.prefix, crew, now)
    admit(wish, await _use(transaction, crew))


async def _use(transaction: Transaction, crew: str) -> NetworkUse:
    found = await transaction.one("networks_use", crew=crew)
    return NetworkUse(found["networks"], found["addresses"], found["instances"])


async def _intend(
    transaction: Transaction, prefix: int, crew: str | None, now: datetime, members: int = 0, maker: str = ""
) -> NetworkRow:
    fresh = ids.make_id(NETWORK_PREFIX, int(now.timestamp() * 1000), secrets.token_bytes(5))
    wish = {"prefix": prefix, "crew": crew, "members": members, "maker": maker}
    return _row(await transaction.one("network_intend", id=fresh, **wish))


def _row(r: DictRow) -> NetworkRow:
    return NetworkRow(
        r["id"], r["prefix"], NetworkState(r["state"]), r["crew"] or "", r["subnet"], r["members"]
    )
