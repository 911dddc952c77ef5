"""One crew's socket: accept no more than the limits allow, carry out each request, and note what came of it."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from factory_server.core.egress import Refusal, Rules, Target, decide
from factory_server.core.model import AuditRow
from factory_server.egress import head
from factory_server.egress.dial import Dialler, Streams
from factory_server.egress.head import Denial
from factory_server.egress.limits import CHUNK_BYTES, EgressLimits
from factory_server.egress.tunnel import Budget, Flow, Tunnel, part

log = logging.getLogger("factory.egress")

METHOD: Final = "egress/CONNECT"
ACCEPT_TROUBLE_PAUSE_S: Final = 0.1
FAREWELL_MAX_S: Final = 1.0
_CREDENTIALS: Final = struct.Struct("3i")

Record = Callable[[AuditRow], Awaitable[None]]


@dataclass(slots=True)
class _Visit:
    """One connection, as the audit log will tell it."""

    peer: str
    began_s: float
    resource: str = ""
    flow: Flow = field(default_factory=Flow)


class Door:
    """Where a crew's connections come in."""

    def __init__(
        self,
        crew: str,
        path: Path,
        identity: int,
        listener: socket.socket,
        dial: Dialler,
        record: Record,
        limits: EgressLimits,
        everybody: asyncio.Semaphore,
    ) -> None:
        self.path = path
        self.identity = identity
        """The socket's inode."""
        self.rules = Rules()
        self._crew = crew
        self._listener = listener
        self._dial = dial
        self._record = record
        self._limits = limits
        self._everybody = everybody
        self._crew_mates = asyncio.Semaphore(limits.crew_connections)
        self._budget = Budget()

    async def run(self) -> None:
        """Serve until cancelled; every connection ends with this."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    # Who finds no place waits in the kernel's queue.
                    await self._crew_mates.acquire()
                    await self._everybody.acquire()
                    connection = await self._accept()
                    group.create_task(self._serve(connection), name=f"egress {self._crew}")
                    await asyncio.sleep(self._limits.pace_s)
        finally:
            self._listener.close()

    async def _accept(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("cannot accept", extra={"crew": self._crew, "error": str(error)})
                await asyncio.sleep(ACCEPT_TROUBLE_PAUSE_S)
            else:
                return connection

    async def _serve(self, connection: socket.socket) -> None:
        """One connection from its request to its audit line. A fault of ours ends this connection only."""
        try:
            visit = _Visit(_peer(connection), asyncio.get_running_loop().time())
            near = await asyncio.open_unix_connection(sock=connection, limit=CHUNK_BYTES)
            try:
                await self._visited(near, visit)
            finally:
                await part(near[1])
        except OSError as error:
            log.info("connection lost", extra={"crew": self._crew, "error": str(error)})
        except Exception:
            log.exception("egress connection failed", extra={"crew": self._crew})
        finally:
            self._everybody.release()
            self._crew_mates.release()

    async def _visited(self, near: Streams, visit: _Visit) -> None:
        try:
            request = await head.read_request(near[0], self._limits.head_s)
            if request is None:
                return
            visit.resource = _shown(request.authority)
            await self._lead_out(near, self._target(request.authority), visit)
        except Denial as denial:
            await self._note(visit, denial.outcome, denial.reason)
            await _answer(near, denial)

    def _target(self, authority: str) -> Target:
        found = decide(self.rules, authority)
        if isinstance(found, Refusal):
            raise Denial(403, found.reason, found.message)
        return found

    async def _lead_out(self, near: Streams, target: Target, visit: _Visit) -> None:
        visit.resource = f"{target.host}:{target.port}"
        if self._budget.used_bytes >= self._limits.crew_bytes:
            raise Denial(429, "CREW_BYTES_SPENT", "the crew has used up its bytes")
        tunnel = Tunnel(near, await self._dial(target), self._budget, self._limits)
        visit.flow = tunnel.flow
        try:
            near[1].write(head.accepted())
            await tunnel.run()
        finally:
            await self._note(visit, "OK", _summary(visit))

    async def _note(self, visit: _Visit, outcome: str, reason: str) -> None:
        row = AuditRow(f"crew/{self._crew}", METHOD, visit.resource, visit.peer, outcome, reason)
        await self._record(row)


async def _answer(near: Streams, denial: Denial) -> None:
    near[1].write(head.refused(denial))
    near[1].write_eof()
    try:
        async with asyncio.timeout(FAREWELL_MAX_S):
            # Closing on unread bytes would throw the answer away: take what the client still says.
            while await near[0].read(CHUNK_BYTES):
                pass
    except TimeoutError:
        return  # it goes on talking: it has been told


def _peer(connection: socket.socket) -> str:
    """Who connects, as the kernel says: an agent's process and host user."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(told)
    return f"pid {pid} uid {uid}"


def _shown(authority: str) -> str:
    """A client's own words, fit for a log."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in authority[:253])


def _summary(visit: _Visit) -> str:
    flow = visit.flow
    lasted_s = asyncio.get_running_loop().time() - visit.began_s
    said = f"sent={flow.sent_bytes} received={flow.received_bytes} seconds={lasted_s:.1f}"
    return f"{said} cut={flow.cut}" if flow.cut else said
