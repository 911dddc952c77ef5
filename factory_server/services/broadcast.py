"""Broadcast a signal: one durable row, fan-out to every live session, exactly one final receipt per target."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from google.protobuf.struct_pb2 import Struct

from factory_server.core import model
from factory_server.core.errors import FactoryError, FieldViolation, Invalid, Refused, Stale, Unavailable
from factory_server.core.lifecycle import LIVE, AgentState
from factory_server.services.durations import seconds
from factory_server.services.parts import Parts
from factory_server.services.requests import key_of
from factory_server.services.sessions import Session, Sessions
from factory_server.services.wake import wake_members
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2, events_pb2, types_pb2

log = logging.getLogger("factory.broadcast")

PAYLOAD_BYTES_MAX = 64 * 1024
TTL_S = 30.0
FLUSH_MAX = 500
GATHER_S = 0.003
QUEUE_MAX = 50_000
LOOK_AGAIN_S = 1.0
RECORD_AGAIN_S = 0.2
GONE = (AgentState.STOPPED, AgentState.FAILED, AgentState.DRAINING)
PENDING = "PENDING"


@dataclass(frozen=True, slots=True)
class Progress:
    """What became of a broadcast since the last look; `done` with the last receipts."""

    row: model.BroadcastRow
    receipts: Sequence[model.ReceiptRow]
    done: bool


class Broadcasts:
    """The fan-out lane of this process. `run` must be a task of the owner's."""

    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        self._parts = parts
        self._sessions = sessions
        self._open: dict[str, model.BroadcastRow] = {}
        self._awaited: dict[str, int] = {}
        self._queue: asyncio.Queue[model.ReceiptRow] = asyncio.Queue(QUEUE_MAX)
        sessions.on_attached.append(self._redeliver)
        sessions.on_receipts = self._receive

    async def send(
        self, request: crew_service_pb2.BroadcastRequest, actor: str
    ) -> tuple[model.BroadcastRow, bool]:
        """Record and fan out; second value: this request joined an earlier one. Invalid, NotFound, Refused."""
        payload = request.payload.SerializeToString()
        if len(payload) > PAYLOAD_BYTES_MAX:
            text = f"is {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} are allowed"
            raise Invalid(
                f"cannot broadcast: payload {text}", violations=[FieldViolation("payload", text, "TOO_LARGE")]
            )
        crew = await self._parts.store.get_crew(request.crew)
        targets = [a for a in crew.agents if a.state in LIVE and _is_target(a, request.target)]
        key = key_of(actor, "Broadcast", request.request_id, request)
        if not targets and await self._parts.store.find_request(key) is None:
            raise Refused(
                f"cannot broadcast to crew '{crew.name}': no live agent is a target",
                metadata={"state": crew.state},
            )
        row, joined = await self._parts.store.open_broadcast(
            crew.id,
            key,
            actor,
            signal=request.signal,
            payload=payload,
            agents=[(a.id, a.name) for a in targets],
            ttl_s=seconds(request.ttl, TTL_S),
        )
        if not joined:
            self._open[row.id] = row
            await self._fan_out(row, [a.id for a in targets])
            await self._wake_sleepers(crew.id, targets)
        return row, joined

    async def _wake_sleepers(self, crew: str, targets: Sequence[model.AgentRow]) -> None:
        """Who hibernates gets the signal when awake. Looked at anew: since the signal is recorded nobody falls
        asleep over it, but somebody may have done so just before."""
        may_sleep = {
            a.id
            for a in targets
            if a.sleeps or a.spec.HasField("idle_ttl") or a.spec.HasField("freeze_after")
        }
        if may_sleep:
            members = (await self._parts.store.get_crew(crew)).agents
            await wake_members(self._parts, crew, [a for a in members if a.id in may_sleep], "Signal")

    async def watch(self, broadcast: str, after: int) -> AsyncIterator[Progress]:
        """Receipts as they become final, in their order; ends with the broadcast."""
        with self._parts.hub.subscribe(f"broadcast:{broadcast}") as rings:
            while True:
                row = await self._parts.store.get_broadcast(broadcast)
                receipts = await self._parts.store.read_receipts(broadcast, after)
                after = receipts[-1].ordinal if receipts else after
                done = row.done_at is not None and after >= row.targets
                if receipts or done:
                    yield Progress(row, receipts, done)
                if done:
                    return
                if not receipts:
                    await rings.wait(self._patience_s(row))

    def _patience_s(self, row: model.BroadcastRow) -> float:
        left_s = (row.expires_at - self._parts.now()).total_seconds()
        return min(max(left_s, 0.01), LOOK_AGAIN_S)

    # Outwards

    async def _fan_out(self, row: model.BroadcastRow, agents: Sequence[str]) -> None:
        item = _delivery(row)
        sessions = [s for s in map(self._sessions.get, agents) if s is not None]
        self._awaited[row.id] = len(sessions)
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(session.send(item), name=f"signal {session.agent}")

    async def _redeliver(self, session: Session) -> None:
        """A session stands again: what its agent has not answered is sent (again)."""
        for row, receipts in await self._parts.store.pending_receipts(session.crew):
            self._open.setdefault(row.id, row)
            if any(r.agent == session.agent for r in receipts):
                await session.send(_delivery(row))

    # Inwards

    async def _receive(self, session: Session, receipts: Sequence[agent_service_pb2.SignalReceipt]) -> None:
        now = self._parts.now()
        for receipt in receipts:
            row = self._open.get(receipt.broadcast)
            started = row.created_at if row is not None else now
            final = model.ReceiptRow(
                broadcast=receipt.broadcast,
                agent=session.agent,
                name="",
                generation=session.generation,
                stage=events_pb2.ReceiptStage.Name(receipt.stage).removeprefix("RECEIPT_STAGE_"),
                ordinal=0,
                latency_s=max((now - started).total_seconds(), 0.0),
                error=receipt.error.SerializeToString() if receipt.HasField("error") else b"",
            )
            if receipt.broadcast in self._awaited:
                self._awaited[receipt.broadcast] -= 1
            await self._queue.put(final)

    async def run(self) -> None:
        """Record receipts in batches: while one commits, the next ones gather."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._expire(), name="broadcast expiry")
            while True:
                batch = [await self._queue.get()]
                await self._gather(batch)
                await self._record(batch)

    async def _gather(self, batch: list[model.ReceiptRow]) -> None:
        """Take what has come, and wait a moment for what is still awaited: a commit costs more than that."""
        until = asyncio.get_running_loop().time() + GATHER_S
        while len(batch) < FLUSH_MAX:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
            elif not any(self._awaited.get(receipt.broadcast) for receipt in batch):
                return
            else:
                try:
                    async with asyncio.timeout_at(until):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    return

    async def _record(self, batch: Sequence[model.ReceiptRow]) -> None:
        by_broadcast: defaultdict[str, list[model.ReceiptRow]] = defaultdict(list)
        for receipt in batch:
            by_broadcast[receipt.broadcast].append(receipt)
        for broadcast, receipts in by_broadcast.items():
            await self._record_one(broadcast, receipts)

    async def _record_one(self, broadcast: str, receipts: Sequence[model.ReceiptRow]) -> None:
        """An agent says each receipt once to a session that stands: it is held until the store takes it."""
        while True:
            try:
                await self._write(broadcast, receipts)
            except (Unavailable, Stale) as error:
                self._parts.measures.trouble.labels("receipts").inc()
                log.warning("cannot record receipts", extra={"broadcast": broadcast, "error": str(error)})
                await asyncio.sleep(RECORD_AGAIN_S)
            except FactoryError as error:
                log.warning("drops receipts", extra={"broadcast": broadcast, "error": str(error)})
                return
            else:
                return

    async def _write(self, broadcast: str, receipts: Sequence[model.ReceiptRow]) -> None:
        final = await self._parts.store.record_receipts(broadcast, receipts)
        row = self._open.get(broadcast)
        if row is not None and any(receipt.ordinal >= row.targets for receipt in final):
            self._close(row)
        self._parts.hub.ring(f"broadcast:{broadcast}")

    def _close(self, row: model.BroadcastRow) -> None:
        """Its last receipt is final."""
        del self._open[row.id]
        self._awaited.pop(row.id, None)
        self._parts.measures.broadcast_s.observe((self._parts.now() - row.created_at).total_seconds())

    async def settle(self, crew: str) -> None:
        """Close what cannot be answered any more: expired, or its agent is gone."""
        rows = await self._parts.store.pending_receipts(crew)
        if not rows:
            return
        agents = (await self._parts.store.get_crew(crew)).agents
        states = {a.id: a.state for a in agents}
        now = self._parts.now()
        for row, pending in rows:
            self._open.setdefault(row.id, row)
            expired = now >= row.expires_at
            wanted = set() if expired else {receipt.agent for receipt in pending}
            await wake_members(self._parts, crew, [a for a in agents if a.id in wanted], "Signal")
            latency_s = (now - row.created_at).total_seconds()
            ended: list[model.ReceiptRow] = []
            for receipt in pending:
                gone = states.get(receipt.agent, AgentState.STOPPED) in GONE
                if expired or gone:
                    stage = "UNREACHABLE" if gone else "EXPIRED"
                    ended.append(
                        model.ReceiptRow(row.id, receipt.agent, receipt.name, 0, stage, 0, latency_s)
                    )
            if ended:
                # At once, not through the queue: after a crew's last step nobody looks at what is open.
                await self._write(row.id, ended)

    async def _expire(self) -> None:
        """Wake at the next expiry; forget what is done."""
        while True:
            soonest_s = LOOK_AGAIN_S
            now = self._parts.now()
            due: set[str] = set()
            for row in list(self._open.values()):
                left_s = (row.expires_at - now).total_seconds()
                if left_s <= 0:
                    due.add(row.crew)
                else:
                    soonest_s = min(soonest_s, left_s)
            for crew in due:
                await self._settle_quietly(crew)
            await asyncio.sleep(max(soonest_s, 0.01))

    async def _settle_quietly(self, crew: str) -> None:
        try:
            await self.settle(crew)
            open_now = {row.id for row, _ in await self._parts.store.pending_receipts(crew)}
        except FactoryError as error:
            self._parts.measures.trouble.labels("expiry").inc()
            log.warning("cannot settle broadcasts", extra={"crew": crew, "error": str(error)})
            return
        for row in [r for r in self._open.values() if r.crew == crew and r.id not in open_now]:
            self._close(row)


def _delivery(row: model.BroadcastRow) -> agent_service_pb2.DeliverRequest:
    return agent_service_pb2.DeliverRequest(
        signal=agent_service_pb2.SignalDelivery(
            broadcast=row.id, signal=row.signal, payload=Struct.FromString(row.payload), actor=row.actor
        )
    )


def _is_target(agent: model.AgentRow, target: crew_service_pb2.BroadcastTarget) -> bool:
    """Fields that are set must all hold."""
    if target.names and agent.name not in target.names and agent.group not in target.names:
        return False
    if any(agent.labels.get(key) != value for key, value in target.labels.items()):
        return False
    states = {agent_state_name(s) for s in target.states}
    return not states or agent.state.value in states


def agent_state_name(state: int) -> str:
    """The core's word for the contract's agent state."""
    return types_pb2.AgentState.Name(types_pb2.AgentState.ValueType(state)).removeprefix("AGENT_STATE_")
