"""The factory's session with an agent: signals in, in order, each handled once; receipts out, in batches.

What the agent offers goes out with them: at the beginning, and with each change.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from agent_runtime.limits import (
    RECEIPTS_BATCH_MAX,
    SIGNAL_HANDLER_MAX_S,
    SIGNALS_QUEUED_MAX,
    SIGNALS_REMEMBERED_MAX,
)
from agent_runtime.structs import to_dict
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import events_pb2
from wire.errors import DeadlineExceeded, Exhausted, FactoryError, Refused, Stale
from wire.status import to_status

Handle = Callable[[str, Mapping[str, Any]], Awaitable[None]]
Report = Callable[[], pb.AgentReport]


class Inbox:
    """Signals of one agent. It outlives sessions: a break loses no receipt, a repeat runs nothing twice."""

    def __init__(self) -> None:
        self._queue: deque[pb.SignalDelivery] = deque()
        self._work = asyncio.Event()
        # Broadcast id to its receipt; None while it is not handled yet.
        self._known: OrderedDict[str, pb.SignalReceipt | None] = OrderedDict()
        self._outbox: deque[pb.SignalReceipt] = deque(maxlen=SIGNALS_REMEMBERED_MAX)
        self._session = 0
        self._news = asyncio.Event()
        self._handling = False
        self._open = asyncio.Event()
        self._open.set()
        self._report: Report | None = None
        self._report_due = False

    @property
    def busy(self) -> bool:
        """Whether a signal is in work, or its receipt has not left yet."""
        return self._handling or bool(self._queue) or bool(self._outbox)

    def hold(self) -> None:
        """Let signals wait: what they would change is not to change now."""
        self._open.clear()

    def release(self) -> None:
        """Handle what waits."""
        self._open.set()

    def accept(self, delivery: pb.SignalDelivery) -> None:
        """Queue a signal, or answer a repeat from memory."""
        broadcast = delivery.broadcast
        if broadcast in self._known:
            if receipt := self._known[broadcast]:
                self._send(receipt)
            return
        self._remember(broadcast, None)
        if len(self._queue) >= SIGNALS_QUEUED_MAX:
            full = Exhausted(f"more than {SIGNALS_QUEUED_MAX} signals wait", quota="signals")
            self._settle(broadcast, full)
            return
        self._queue.append(delivery)
        self._work.set()

    def refuse(self, delivery: pb.SignalDelivery, why: str) -> None:
        """Reject a signal that nobody can handle, without remembering it."""
        self._send(_receipt(delivery.broadcast, Refused(why)))

    async def work(self, handle: Handle) -> None:
        """Handle signals one after the other, for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue:
                await self._open.wait()
                delivery = self._queue.popleft()
                self._handling = True
                try:
                    self._settle(delivery.broadcast, await _handle(handle, delivery))
                finally:
                    self._handling = False
                await asyncio.sleep(0)  # a burst of quick handlers must not hold up health

    def _settle(self, broadcast: str, error: FactoryError | None) -> None:
        receipt = _receipt(broadcast, error)
        self._remember(broadcast, receipt)
        self._send(receipt)

    def _remember(self, broadcast: str, receipt: pb.SignalReceipt | None) -> None:
        self._known[broadcast] = receipt
        while len(self._known) > SIGNALS_REMEMBERED_MAX:
            self._known.popitem(last=False)

    def _send(self, receipt: pb.SignalReceipt) -> None:
        self._outbox.append(receipt)
        self._news.set()

    def report_by(self, report: Report) -> None:
        """From now on say what the agent offers: at once, at the beginning of each session, when it is due."""
        self._report = report
        self.report_due()

    def report_due(self) -> None:
        """What the agent offers is another."""
        self._report_due = True
        self._news.set()

    def supersede(self) -> int:
        """Begin a session, which ends the one before it."""
        self._session += 1
        self._report_due = True
        self._news.set()
        return self._session

    async def batches(self, session: int, ended: asyncio.Event) -> AsyncGenerator[pb.DeliverResponse, None]:
        """Receipts and reports as they come, until the session ends or a newer one stands."""
        while True:
            if session != self._session:
                raise Stale("a newer session with the agent stands")
            if self._report_due and self._report is not None:
                self._report_due = False
                yield pb.DeliverResponse(report=self._report())
            while self._outbox and session == self._session:
                count = min(len(self._outbox), RECEIPTS_BATCH_MAX)
                yield pb.DeliverResponse(receipts=[self._outbox.popleft() for _ in range(count)])
            if ended.is_set():
                return
            if session == self._session:
                await self._wait()

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    def end(self, ended: asyncio.Event) -> None:
        """End a session: its reader has stopped."""
        ended.set()
        self._news.set()


async def _handle(handle: Handle, delivery: pb.SignalDelivery) -> FactoryError | None:
    try:
        async with asyncio.timeout(SIGNAL_HANDLER_MAX_S):
            await handle(delivery.signal, to_dict(delivery.payload))
    except TimeoutError:
        return DeadlineExceeded(f"the agent did not handle '{delivery.signal}' in {SIGNAL_HANDLER_MAX_S:g} s")
    except FactoryError as error:
        return error
    return None


def _receipt(broadcast: str, error: FactoryError | None) -> pb.SignalReceipt:
    if error is None:
        return pb.SignalReceipt(broadcast=broadcast, stage=events_pb2.RECEIPT_STAGE_ACKED)
    return pb.SignalReceipt(
        broadcast=broadcast, stage=events_pb2.RECEIPT_STAGE_REJECTED, error=to_status(error)
    )
