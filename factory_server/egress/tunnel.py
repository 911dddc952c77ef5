"""Carry bytes both ways between a crew and a host, within the budgets, until both ends have said all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from factory_server.egress.dial import Streams
from factory_server.egress.limits import CHUNK_BYTES, EgressLimits

PART_MAX_S: Final = 10.0


@dataclass(slots=True)
class Budget:
    """What a crew has used."""

    used_bytes: int = 0


@dataclass(slots=True)
class Flow:
    """What went through one tunnel, and why it was cut; '' where both ends closed it."""

    sent_bytes: int = 0
    received_bytes: int = 0
    cut: str = ""


async def part(writer: asyncio.StreamWriter, *, at_once: bool = False) -> None:
    """Close one end; what is still to be sent gets a moment."""
    writer.close()
    try:
        async with asyncio.timeout(0 if at_once else PART_MAX_S):
            await writer.wait_closed()
    except OSError:
        writer.transport.abort()


class _Spent(Exception):
    """A budget is used up."""


class Tunnel:
    """One connection. `near` is the crew's side."""

    def __init__(self, near: Streams, far: Streams, budget: Budget, limits: EgressLimits) -> None:
        self._near = near
        self._far = far
        self._budget = budget
        self._limits = limits
        self.flow = Flow()

    async def run(self) -> None:
        """Carry until the end; `flow` says what came of it, also after a cancellation."""
        self.flow.cut = "CLOSED"
        try:
            async with asyncio.timeout(self._limits.life_s):
                self.flow.cut = await self._carry()
        except TimeoutError:
            self.flow.cut = "TOO_LONG"
        finally:
            if self.flow.cut:
                # Who does not read must not hold a place until what is left for it is sent.
                self._near[1].transport.abort()
            await part(self._far[1], at_once=bool(self.flow.cut))

    async def _carry(self) -> str:
        cut = ""
        try:
            async with asyncio.timeout(self._limits.idle_s) as idle, asyncio.TaskGroup() as group:
                group.create_task(self._pump(self._near[0], self._far[1], idle, out=True), name="egress out")
                group.create_task(self._pump(self._far[0], self._near[1], idle, out=False), name="egress in")
        except* OSError as broken:
            idled = isinstance(broken.exceptions[0], TimeoutError)
            cut = "IDLE" if idled else "BROKEN"
        except* _Spent as spent:
            cut = str(spent.exceptions[0])
        return cut

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: asyncio.Timeout, *, out: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(CHUNK_BYTES):
            self._count(len(data), out=out)
            idle.reschedule(loop.time() + self._limits.idle_s)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def _count(self, size: int, *, out: bool) -> None:
        flow, limits = self.flow, self._limits
        if flow.sent_bytes + flow.received_bytes + size > limits.connection_bytes:
            raise _Spent("CONNECTION_BYTES_SPENT")
        if self._budget.used_bytes + size > limits.crew_bytes:
            raise _Spent("CREW_BYTES_SPENT")
        self._budget.used_bytes += size
        if out:
            flow.sent_bytes += size
        else:
            flow.received_bytes += size
