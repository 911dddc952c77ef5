"""Tell the factory what was seen: heartbeats in batches, bad news at once, each until it is accepted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, assert_never

import grpc
import grpc.aio
import structlog

from hyperfactory.v1.factory_service_pb2 import AgentHealth, HealthVerdict, ReportHealthRequest
from watchdog import meters
from watchdog.judge import Standing, Verdict

if TYPE_CHECKING:
    from hyperfactory.v1.factory_service_pb2_grpc import FactoryServiceAsyncStub

BATCH_MAX = 5000
EVIDENCE_MAX_CHARS = 1000
REPORT_DEADLINE_S = 5.0
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 3.0

# The report itself is refused; to repeat it would be refused again. The next beat makes a new one.
HOPELESS = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED})

log = structlog.get_logger("watchdog.report")


@dataclass(slots=True)
class Outbox:
    """The newest verdict about each agent that the factory has not accepted; one place an agent."""

    _waiting: dict[str, Verdict] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, verdict: Verdict) -> None:
        """A newer generation overtakes; a death waits until accepted, or until the agent answers after all."""
        held = self._waiting.get(verdict.agent)
        if held is not None and not _overtakes(verdict, held):
            return
        self._waiting[verdict.agent] = verdict

    def take(self, limit: int) -> list[Verdict]:
        """The next batch, the deaths first."""
        if len(self._waiting) <= limit:
            batch = list(self._waiting.values())
        else:
            first = sorted(self._waiting.values(), key=lambda v: v.standing is not Standing.DEAD)
            batch = list(islice(first, limit))
        for verdict in batch:
            del self._waiting[verdict.agent]
        return batch

    def put_back(self, batch: Iterable[Verdict]) -> None:
        """The batch was not accepted; what was put meanwhile is newer."""
        for verdict in batch:
            newer = self._waiting.get(verdict.agent)
            if newer is None or not _overtakes(newer, verdict):
                self._waiting[verdict.agent] = verdict

    def drop(self, agent: str) -> None:
        """The agent is gone or has a successor; nobody needs to hear about the old instance."""
        self._waiting.pop(agent, None)


def _overtakes(new: Verdict, held: Verdict) -> bool:
    if new.generation != held.generation:
        return new.generation > held.generation
    return held.standing is not Standing.DEAD or new.standing is Standing.DEAD or new.misses == 0


class Reporter:
    """Sends the outbox once in `interval_s`, and at once when there is bad news."""

    def __init__(self, stub: FactoryServiceAsyncStub, interval_s: float) -> None:
        self.outbox = Outbox()
        self._stub = stub
        self._interval_s = interval_s
        self._urgent = asyncio.Event()

    def put(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            self.outbox.put(verdict)
            if verdict.urgent:
                self._urgent.set()

    async def run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        while True:
            await self._wait_for_news()
            while self.outbox:
                if await self._send(self.outbox.take(BATCH_MAX)):
                    backoff_s = BACKOFF_MIN_S
                    continue
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _wait_for_news(self) -> None:
        try:
            async with asyncio.timeout(self._interval_s):
                await self._urgent.wait()
        except TimeoutError:
            pass  # a beat's worth of heartbeats is due
        self._urgent.clear()

    async def _send(self, batch: list[Verdict]) -> bool:
        request = ReportHealthRequest(reports=encode(batch, time.monotonic(), datetime.now(UTC)))
        try:
            answer = await self._stub.ReportHealth(request, timeout=REPORT_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return self._not_accepted(batch, error)
        meters.REPORTS.labels("accepted").inc(len(batch) - answer.stale)
        meters.REPORTS.labels("stale").inc(answer.stale)
        return True

    def _not_accepted(self, batch: list[Verdict], error: grpc.aio.AioRpcError) -> bool:
        code = error.code()
        log.warning(
            "cannot report", action="report_failed", code=code.name, why=error.details(), reports=len(batch)
        )
        if code in HOPELESS:
            meters.REPORTS.labels("refused").inc(len(batch))
            return True
        self.outbox.put_back(batch)
        return False


def encode(batch: Iterable[Verdict], now: float, wall: datetime) -> list[AgentHealth]:
    """The reports on the wire; the wall clock serves only to show people when an agent last answered."""
    return [_encode_one(verdict, now, wall) for verdict in batch]


def _encode_one(verdict: Verdict, now: float, wall: datetime) -> AgentHealth:
    report = AgentHealth(
        agent=verdict.agent,
        generation=verdict.generation,
        verdict=_wire_verdict(verdict.standing),
        misses=verdict.misses,
        evidence=verdict.evidence[:EVIDENCE_MAX_CHARS],
    )
    if verdict.last_seen is not None:
        report.last_seen.FromDatetime(wall - timedelta(seconds=now - verdict.last_seen))
    return report


def _wire_verdict(standing: Standing) -> HealthVerdict.ValueType:
    match standing:
        case Standing.SERVING:
            return HealthVerdict.HEALTH_VERDICT_SERVING
        case Standing.SUSPECT:
            return HealthVerdict.HEALTH_VERDICT_SUSPECT
        case Standing.DEAD:
            return HealthVerdict.HEALTH_VERDICT_DEAD
        case _:
            assert_never(standing)
