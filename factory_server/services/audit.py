"""Write who did what: in batches, beside the calls, without loss on a clean stop."""

from __future__ import annotations

import asyncio
import logging

from factory_server.core.errors import FactoryError
from factory_server.core.model import AuditRow
from factory_server.services.parts import Parts

log = logging.getLogger("factory.audit")

QUEUE_MAX = 20_000
BATCH_MAX = 500
RETRY_S = 0.5


class AuditLog:
    """A queue before the store; full, it makes callers wait rather than forget. `run` is a task."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._queue: asyncio.Queue[AuditRow] = asyncio.Queue(QUEUE_MAX)

    async def add(self, row: AuditRow) -> None:
        """Take a row down."""
        log.info(
            "audit",
            extra={
                "action": "audit",
                "actor": row.actor,
                "method": row.method,
                "resource": row.resource,
                "outcome": row.outcome,
                "reason": row.reason,
            },
        )
        await self._queue.put(row)

    async def run(self) -> None:
        """Write until cancelled; what is queued then is written before the end."""
        batch: list[AuditRow] = []
        try:
            while True:
                batch.append(await self._queue.get())
                self._gather(batch)
                await self._write(batch)
                batch = []
        finally:
            self._gather(batch)
            while batch and await self._write_once(batch):
                batch = []
                self._gather(batch)

    def _gather(self, batch: list[AuditRow]) -> None:
        while len(batch) < BATCH_MAX and not self._queue.empty():
            batch.append(self._queue.get_nowait())

    async def _write(self, batch: list[AuditRow]) -> None:
        while True:
            if await self._write_once(batch):
                return
            await asyncio.sleep(RETRY_S)

    async def _write_once(self, batch: list[AuditRow]) -> bool:
        try:
            await self._parts.store.audit(batch)
        except FactoryError as error:
            self._parts.measures.trouble.labels("audit").inc()
            log.warning("cannot write audit events", extra={"count": len(batch), "error": str(error)})
            return False
        return True
