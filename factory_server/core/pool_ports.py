"""What the services need of the store for the warm pool, as a Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from factory_server.core import model


class PoolStore(Protocol):
    """The warm pool."""

    async def get_pools(self) -> Sequence[model.PoolRow]:
        """All pools with their counts."""

    async def set_pool(
        self, base: str, target: int, request: model.RequestKey | None, actor: str
    ) -> model.PoolRow:
        """Set the size, making the pool row if needed; surplus WARM instances become DYING."""

    async def plan_refill(self, base: str, limit: int, maker: str) -> Sequence[model.InstanceRow]:
        """Count and insert STARTING intents under one lock per base, at most up to the target: N replicas
        filling at once make exactly the target."""

    async def abandon_refill(self, maker: str) -> None:
        """What this maker has begun and not finished becomes DYING: its process is gone."""

    async def pool_started(self, fact: model.SandboxFact) -> bool:
        """STARTING → WARM. False where it is not wished any more (destroy it)."""

    async def plan_member(self, network: str, base: str) -> model.InstanceRow | None:
        """Intend an instance for a cell that is STARTING; None where it is not wished any more. Only the crew
        that gets the cell is given it."""

    async def member_started(self, fact: model.SandboxFact, address: str) -> bool:
        """A cell's member is on its network: STARTING → WARM. False where it is not wished any more."""

    async def end_broken_cells(self, maker: str) -> bool:
        """Cells that lack members become DYING, with those that this maker has begun: it makes none now. True
        where instances became DYING."""

    async def pool_degraded(self, base: str, reason: str, message: str) -> None:
        """Set ('' clears) the pool's trouble."""
