"""Keep broadcasts until each target has exactly one final receipt."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

from google.protobuf import struct_pb2
from google.rpc import status_pb2
from psycopg.rows import DictRow

from factory_server.core import ids
from factory_server.core.errors import NotFound, Refused
from factory_server.core.model import BroadcastRow, ReceiptRow, RequestKey
from factory_server.store.locked import LockedCrew, lock_crew
from factory_server.store.pool import Part, Transaction, columns
from factory_server.store.requests import claim_request
from hyperfactory.v1 import events_pb2

PENDING = "PENDING"
FROM_AGENTS = frozenset({"ACKED", "REJECTED"})


class Broadcasts(Part):
    """Durable signals to agents."""

    async def open_broadcast(
        self,
        crew: str,
        request: RequestKey,
        actor: str,
        *,
        signal: str,
        payload: bytes,
        agents: Sequence[tuple[str, str]],
        ttl_s: float,
    ) -> tuple[BroadcastRow, bool]:
        """Record a broadcast with PENDING receipts and its event; second value: joined."""
        targets = dict(agents)

        async def body(transaction: Transaction) -> tuple[BroadcastRow, bool]:
            locked = await lock_crew(transaction, crew)
            fresh = new_id("b", locked.now)
            earlier = await claim_request(transaction, request, fresh)
            if earlier is not None:
                return await _read(transaction, earlier), True
            _refuse_leaving(locked)
            row = await transaction.one(
                "broadcast_insert",
                id=fresh,
                crew=crew,
                signal=signal,
                payload=payload,
                actor=actor,
                targets=len(targets),
                now=locked.now,
                ttl_s=ttl_s,
            )
            await transaction.send(
                "receipts_insert", broadcast=fresh, agents=list(targets), names=list(targets.values())
            )
            locked.events.append(_signal_event(row))
            await locked.finish()
            return _broadcast_row(row), False

        return await self._db.run(body)

    async def get_broadcast(self, broadcast: str) -> BroadcastRow:
        """Return a broadcast."""

        async def body(transaction: Transaction) -> BroadcastRow:
            return await _read(transaction, broadcast)

        return await self._db.read(body)

    async def record_receipts(self, broadcast: str, receipts: Sequence[ReceiptRow]) -> Sequence[ReceiptRow]:
        """Make PENDING receipts final, once each; return those that became final now, in order."""
        wanted = list({r.agent: r for r in reversed(receipts) if r.stage != PENDING}.values())[::-1]

        async def body(transaction: Transaction) -> Sequence[ReceiptRow]:
            crew = (await _read(transaction, broadcast)).crew
            locked = await lock_crew(transaction, crew)
            opened = await transaction.one("broadcast_get", broadcast=broadcast)
            final = await _finish(locked, opened, wanted)
            locked.events.extend(_receipt_event(locked.id, receipt) for receipt in final)
            if final:
                await transaction.send(
                    "broadcast_count",
                    broadcast=broadcast,
                    finals=opened["finals"] + len(final),
                    now=locked.now,
                )
                await locked.finish()
            return final

        return await self._db.run(body) if wanted else []

    async def read_receipts(self, broadcast: str, after: int) -> Sequence[ReceiptRow]:
        """Return final receipts with ordinal > after, in order."""

        async def body(transaction: Transaction) -> Sequence[ReceiptRow]:
            rows = await transaction.rows("receipts_read", broadcast=broadcast, after=after)
            return [_receipt_row(row) for row in rows]

        return await self._db.read(body)

    async def pending_receipts(self, crew: str) -> Sequence[tuple[BroadcastRow, Sequence[ReceiptRow]]]:
        """Return open broadcasts of a crew with their pending receipts."""

        async def body(transaction: Transaction) -> Sequence[tuple[BroadcastRow, Sequence[ReceiptRow]]]:
            opened = await transaction.rows("broadcasts_open", crew=crew)
            rows = await transaction.rows("receipts_pending", broadcasts=columns(opened, "id"))
            pending = [_receipt_row(row) for row in rows]
            return [(_broadcast_row(b), [r for r in pending if r.broadcast == b["id"]]) for b in opened]

        return await self._db.snapshot(body)


def new_id(prefix: str, now: datetime) -> str:
    """Name a thing that the store makes."""
    return ids.make_id(prefix, int(now.timestamp() * 1000), secrets.token_bytes(5))


def _refuse_leaving(crew: LockedCrew) -> None:
    """Nobody would finish what begins in a crew that has ended, or is on its way out."""
    if not crew.live:
        raise Refused(
            f"cannot reach crew '{crew.id}': it is {crew.state}", metadata={"state": str(crew.state)}
        )


async def _finish(
    crew: LockedCrew, broadcast: DictRow, receipts: Sequence[ReceiptRow]
) -> Sequence[ReceiptRow]:
    """Number those receipts that are still pending, in the order given."""
    rows = await crew.transaction.rows("receipts_pending", broadcasts=[broadcast["id"]])
    pending = set(columns(rows, "agent"))
    fresh = [receipt for receipt in receipts if receipt.agent in pending]
    if not fresh:
        return []
    age_s = (crew.now - broadcast["created_at"]).total_seconds()
    done = await crew.transaction.rows(
        "receipts_finish",
        broadcast=broadcast["id"],
        finals=broadcast["finals"],
        agents=[r.agent for r in fresh],
        stages=[r.stage for r in fresh],
        generations=[r.generation for r in fresh],
        latencies=[r.latency_s or age_s for r in fresh],
        errors=[r.error for r in fresh],
    )
    return sorted(map(_receipt_row, done), key=lambda receipt: receipt.ordinal)


async def _read(transaction: Transaction, broadcast: str) -> BroadcastRow:
    row = await transaction.row("broadcast_get", broadcast=broadcast)
    if row is None:
        raise NotFound(f"no broadcast '{broadcast}'", resource_type="broadcast", resource_name=broadcast)
    return _broadcast_row(row)


def _signal_event(row: DictRow) -> events_pb2.Event:
    signal = events_pb2.Signal(broadcast=row["id"], signal=row["signal"], targets=row["targets"])
    signal.payload.CopyFrom(struct_pb2.Struct.FromString(row["payload"]))
    return events_pb2.Event(type=events_pb2.EVENT_TYPE_SIGNAL, actor=row["actor"], signal=signal)


def _receipt_event(crew: str, row: ReceiptRow) -> events_pb2.Event:
    receipt = events_pb2.Receipt(
        agent=row.agent,
        generation=row.generation,
        stage=events_pb2.ReceiptStage.Value(f"RECEIPT_STAGE_{row.stage}"),
        broadcast=row.broadcast,
        name=row.name,
    )
    receipt.latency.FromNanoseconds(int(row.latency_s * 1e9))
    if row.error:
        receipt.error.CopyFrom(status_pb2.Status.FromString(row.error))
    actor = f"crew/{crew}/agent/{row.name}" if row.stage in FROM_AGENTS else "factory"
    return events_pb2.Event(type=events_pb2.EVENT_TYPE_RECEIPT, actor=actor, agent=row.agent, receipt=receipt)


def _broadcast_row(r: DictRow) -> BroadcastRow:
    return BroadcastRow(
        id=r["id"],
        crew=r["crew"],
        signal=r["signal"],
        payload=r["payload"],
        actor=r["actor"],
        targets=r["targets"],
        created_at=r["created_at"],
        expires_at=r["expires_at"],
        done_at=r["done_at"],
    )


def _receipt_row(r: DictRow) -> ReceiptRow:
    return ReceiptRow(
        broadcast=r["broadcast"],
        agent=r["agent"],
        name=r["name"],
        generation=r["generation"],
        stage=r["stage"],
        ordinal=r["ordinal"],
        latency_s=r["latency_s"],
        error=r["error"],
    )
