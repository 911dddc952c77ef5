"""Mirror crews' contexts from the bus, so that a wiped bus can be filled again."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import json_format

from factory_server.core.model import ContextRow
from factory_server.store.locked import lock_crew
from factory_server.store.pool import Part, Transaction
from hyperfactory.v1 import events_pb2


class Context(Part):
    """The last known value of each key."""

    async def mirror_context(
        self, crew: str, rows: Sequence[ContextRow], cursor: str
    ) -> Sequence[ContextRow]:
        """Write rows that are newer than ours, their events and the cursor; return those that were new."""

        async def body(transaction: Transaction) -> Sequence[ContextRow]:
            locked = await lock_crew(transaction, crew)
            fresh = await _newer(transaction, crew, rows)
            if fresh:
                await _upsert(transaction, crew, fresh)
                locked.events.extend(map(_event, fresh))
                await locked.finish()
                transaction.log_only = True
            known = (await transaction.one("context_cursor_get", crew=crew))["context_cursor"]
            if _place(cursor) > _place(known):
                await transaction.send("context_cursor_set", crew=crew, cursor=cursor)
            return fresh

        return await self._db.run(body)

    async def read_context(self, crew: str) -> Sequence[ContextRow]:
        """Return all keys that are set."""

        async def body(transaction: Transaction) -> Sequence[ContextRow]:
            rows = await transaction.rows("context_read", crew=crew)
            return [ContextRow(row["key"], row["value"], row["version"], row["actor"]) for row in rows]

        return await self._db.read(body)


async def _newer(transaction: Transaction, crew: str, rows: Sequence[ContextRow]) -> Sequence[ContextRow]:
    """Keep rows above the version we have, in order; each version of a key once."""
    known = await transaction.rows("context_versions", crew=crew, keys=sorted({row.key for row in rows}))
    versions: dict[str, int] = {row["key"]: row["version"] for row in known}
    fresh = []
    for row in rows:
        if row.version > versions.get(row.key, 0):
            versions[row.key] = row.version
            fresh.append(row)
    return fresh


async def _upsert(transaction: Transaction, crew: str, rows: Sequence[ContextRow]) -> None:
    last = list({row.key: row for row in rows}.values())
    await transaction.rows(
        "context_upsert",
        crew=crew,
        keys=[row.key for row in last],
        values=[row.value for row in last],
        versions=[row.version for row in last],
        actors=[row.actor for row in last],
    )


def _event(row: ContextRow) -> events_pb2.Event:
    change = events_pb2.ContextChange(key=row.key, version=row.version)
    if row.value is not None:
        json_format.Parse(row.value, change.value)
    return events_pb2.Event(type=events_pb2.EVENT_TYPE_CONTEXT, actor=row.actor, context=change)


def _place(cursor: str) -> tuple[int, ...]:
    """Order cursors of the bus, `<milliseconds>-<number>`: another replica may be ahead."""
    return tuple(int(part) for part in cursor.split("-") if part.isdecimal())
