"""Read and write the event log, and drop what is older than anybody may ask for."""

from __future__ import annotations

from collections.abc import Sequence

from factory_server.core.errors import Invalid, NotFound
from factory_server.core.model import EncodedEvent
from factory_server.store import encode
from factory_server.store.pool import Part, Transaction
from hyperfactory.v1 import events_pb2

REQUESTS_KEPT_S = 86_400.0
"""The contract promises to remember a request for 24 h."""
COMPACT_MAX_ROWS = 10_000
COMPACT_MAX_CREWS = 1_000
AUDIT_KEPT_S = 400 * 24 * 3600.0
"""Over a year: what is asked about is asked at the latest when the next year's audit comes."""
"""What one pass drops at most, so that it ends well within a statement's time."""
OLDEST = "0.0"


class Events(Part):
    """The log of each crew, and of all."""

    async def append(self, crew: str, events: Sequence[events_pb2.Event]) -> int:
        """Append events; return the last sequence."""

        async def body(transaction: Transaction) -> int:
            await transaction.send("crew_lock", crew=crew)
            rows = await transaction.rows(
                "events_append",
                crew=crew,
                count=len(events),
                types=[event.type for event in events],
                agents=[event.agent for event in events],
                data=[encode.stored(event) for event in events],
            )
            if not rows:
                raise NotFound(f"no crew '{crew}'", resource_type="crew", resource_name=crew)
            last = max(int(row["sequence"]) for row in rows)
            transaction.crews[crew] = last
            transaction.log_only = True
            return last

        return await self._db.run(body) if events else (await self.event_bounds(crew))[1]

    async def read_events(self, crew: str, after: int, limit: int) -> Sequence[EncodedEvent]:
        """Return events of a crew with sequence > after, in order."""

        async def body(transaction: Transaction) -> Sequence[EncodedEvent]:
            rows = await transaction.rows("events_read", crew=crew, after=after, limit=limit)
            return [encode.encoded(row) for row in rows]

        return await self._db.read(body)

    async def event_bounds(self, crew: str) -> tuple[int, int]:
        """Return the oldest kept sequence (or head + 1) and the head."""

        async def body(transaction: Transaction) -> tuple[int, int]:
            row = await transaction.row("events_bounds", crew=crew)
            if row is None:
                raise NotFound(f"no crew '{crew}'", resource_type="crew", resource_name=crew)
            return row["oldest"], row["head"]

        return await self._db.read(body)

    async def read_all_events(self, mark: str, limit: int) -> tuple[Sequence[EncodedEvent], str]:
        """Return events of all crews in a gap-free commit order, and the mark after them.

        A transaction is read only when every older one has ended, so nothing can appear behind the mark.
        """
        xid, number, seen = _parse(mark or OLDEST)

        async def body(transaction: Transaction) -> tuple[Sequence[EncodedEvent], str]:
            rows = await transaction.rows("events_read_all", xid=xid, id=number, seen=seen, limit=limit)
            if not rows:
                return [], mark or OLDEST
            last = rows[-1]
            return [encode.encoded(row) for row in rows], _format(last["written_by"], last["id"], seen)

        return await self._db.read(body)

    async def latest_mark(self) -> str:
        """Return the mark from which only later commits are read."""

        async def body(transaction: Transaction) -> str:
            row = await transaction.one("events_latest")
            return f"{row['xmin']}.0.{row['seen']}"

        return await self._db.read(body)

    async def compact_events(self, *, keep_s: float, keep_per_crew: int) -> int:
        """Drop old events, requests, tasks, broadcasts, ended crews and audit rows; return how many rows."""

        async def body(transaction: Transaction) -> int:
            gone = await transaction.rows(
                "compact_events", keep_s=keep_s, keep_per_crew=keep_per_crew, limit=COMPACT_MAX_ROWS
            )
            count = len(gone)
            for name in ("compact_requests", "compact_tasks", "compact_broadcasts"):
                count += len(await transaction.rows(name, keep_s=REQUESTS_KEPT_S))
            count += len(await transaction.rows("compact_crews", keep_s=keep_s, limit=COMPACT_MAX_CREWS))
            count += len(await transaction.rows("compact_audit", keep_s=AUDIT_KEPT_S, limit=COMPACT_MAX_ROWS))
            return count + len(await transaction.rows("compact_tools"))

        return await self._db.run(body)


def _parse(mark: str) -> tuple[str, int, str]:
    xid, _, rest = mark.partition(".")
    number, _, seen = rest.partition(".")
    if not (xid.isdecimal() and number.isdecimal()):
        raise Invalid(f"cannot read events after mark '{mark}'", reason="CURSOR_INVALID")
    return xid, int(number), seen


def _format(xid: str, number: int, seen: str) -> str:
    """Write a mark; what was seen when it began matters only up to that snapshot's end."""
    if seen and int(xid) < int(seen.split(":")[1]):
        return f"{xid}.{number}.{seen}"
    return f"{xid}.{number}"
