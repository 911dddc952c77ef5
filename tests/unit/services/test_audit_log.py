"""Audit rows are written in batches, again where the store was away, and all of them at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service_parts import parts

from factory_server.core.errors import Unavailable
from factory_server.core.model import AuditRow
from factory_server.services.audit import BATCH_MAX, AuditLog


class Store:
    def __init__(self) -> None:
        self.rows: list[AuditRow] = []
        self.errors = 0

    async def audit(self, rows: Sequence[AuditRow]) -> None:
        if self.errors:
            self.errors -= 1
            raise Unavailable("away")
        await asyncio.sleep(0)
        self.rows += rows


def row(number: int) -> AuditRow:
    return AuditRow("alice", "GetCrew", str(number), "", "ALLOWED", "")


async def test_what_is_queued_at_the_end_is_written_before_it():
    store = Store()
    log = AuditLog(parts(store=store))
    count = 3 * BATCH_MAX + 7
    for number in range(count):
        await log.add(row(number))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(log.run())
        await asyncio.sleep(0)
        task.cancel()
    assert [r.resource for r in store.rows] == [str(n) for n in range(count)]


async def test_a_store_that_is_away_loses_nothing(monkeypatch):
    monkeypatch.setattr("factory_server.services.audit.RETRY_S", 0.001)
    store = Store()
    store.errors = 3
    log = AuditLog(parts(store=store))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(log.run())
        for number in range(5):
            await log.add(row(number))
        async with asyncio.timeout(5):
            while len(store.rows) < 5:
                await asyncio.sleep(0.001)
        task.cancel()
    assert [r.resource for r in store.rows] == ["0", "1", "2", "3", "4"]
