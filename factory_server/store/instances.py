"""Keep the rows of sandboxes, and what the watchdog saw of them."""

from __future__ import annotations

from collections.abc import Sequence

from factory_server.core.model import HealthFact, InstanceRow
from factory_server.store.pool import Part, Transaction
from factory_server.store.rows import instance_row


class Instances(Part):
    """Instances from wish to oblivion."""

    async def release_instance(self, instance: str) -> None:
        """Mark an instance DYING, from whatever state."""
        await self.release_instances([instance])

    async def release_instances(self, instances: Sequence[str]) -> None:
        """Mark instances DYING, from whatever state."""

        async def body(transaction: Transaction) -> None:
            # The agents first: everywhere else, too, agents are locked before instances.
            transaction.agents = bool(await transaction.rows("agents_touch", instances=list(instances)))
            await transaction.send("instances_release", instances=list(instances))

        await self._db.run(body)

    async def dying_instances(self, limit: int) -> Sequence[InstanceRow]:
        """Return instances that must be destroyed."""

        async def body(transaction: Transaction) -> Sequence[InstanceRow]:
            return [instance_row(row) for row in await transaction.rows("instances_dying", limit=limit)]

        return await self._db.read(body)

    async def forget_instance(self, instance: str) -> None:
        """Delete the row of an instance that is destroyed."""
        await self.forget_instances([instance])

    async def forget_instances(self, instances: Sequence[str]) -> None:
        """Delete the rows of instances that are destroyed."""

        async def body(transaction: Transaction) -> None:
            transaction.agents = bool(await transaction.rows("agents_touch", instances=list(instances)))
            await transaction.send("instances_forget", instances=list(instances))

        await self._db.run(body)

    async def list_instances(self) -> Sequence[InstanceRow]:
        """Return all rows."""

        async def body(transaction: Transaction) -> Sequence[InstanceRow]:
            return [instance_row(row) for row in await transaction.rows("instances_list")]

        return await self._db.read(body)

    async def record_health(self, facts: Sequence[HealthFact]) -> int:
        """Write heartbeats; the number of facts about a generation that is not the present one."""
        latest = {fact.agent: fact for fact in sorted(facts, key=lambda fact: fact.generation)}

        async def body(transaction: Transaction) -> int:
            await transaction.send("commit_asynchronously")
            written = await transaction.rows(
                "health_record",
                agents=list(latest),
                generations=[fact.generation for fact in latest.values()],
                misses=[fact.misses for fact in latest.values()],
                seen=[fact.seen_at for fact in latest.values()],
            )
            present = {(row["agent"], row["generation"]) for row in written}
            return sum((fact.agent, fact.generation) not in present for fact in facts)

        return await self._db.run(body) if latest else 0
