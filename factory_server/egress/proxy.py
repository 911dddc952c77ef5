"""Open and close crews' ways out: implements `core.ports.Egress` with one socket per crew in one directory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from factory_server.core.egress import Rules
from factory_server.core.errors import Unavailable
from factory_server.core.model import AuditRow
from factory_server.egress.dial import Dialler, Resolve, Unfit, resolve_by_system, unfit_by_default
from factory_server.egress.door import Door, Record
from factory_server.egress.limits import BACKLOG, THREADS_MAX, EgressLimits
from hyperfactory.v1 import crew_service_pb2

SOCKET_MODE: Final = 0o666
"""Agents have other host users; they can only connect where the socket is shown to them."""
SUFFIX: Final = ".sock"


async def _unrecorded(_row: AuditRow) -> None:
    raise Unavailable("there is no audit log yet")


class EgressProxy:
    """All doors of this process, and their tasks; use as `async with`. At the end every socket is removed.

    `resolve` and `unfit` are given where a test plays the internet itself.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limits: EgressLimits | None = None,
        resolve: Resolve = resolve_by_system,
        unfit: Unfit = unfit_by_default,
    ) -> None:
        self.record: Record = _unrecorded
        self._directory = directory
        self._limits = limits or EgressLimits()
        self._resolve = resolve
        self._unfit = unfit
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="egress-names")
        self._everybody = asyncio.Semaphore(self._limits.all_connections)
        self._doors: dict[str, tuple[Door, asyncio.Task[None]]] = {}
        self._lock = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._shut = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.shut()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self._tasks.__aexit__(kind, error, trace)

    async def shut(self) -> None:
        """Close every door, and open none any more: what the audit log must hold is told when this returns."""
        self._shut = True
        for crew in list(self._doors):
            await self.close(crew)

    async def open(self, crew: str, network: crew_service_pb2.CrewNetwork) -> str:
        """Be open for the crew with these rules; the socket's path. Raises Unavailable."""
        async with self._lock:
            if self._shut:
                raise Unavailable("the factory's way out is closing", reason="DRAINING")
            if crew not in self._doors:
                self._doors[crew] = await self._opened(crew)
            door, _ = self._doors[crew]
            door.rules = Rules.of(network)
            return str(door.path)

    async def close(self, crew: str) -> None:
        """Nothing is open for the crew any more: its connections end, its socket is gone."""
        async with self._lock:
            found = self._doors.pop(crew, None)
            if found is None:
                await asyncio.to_thread(self._path(crew).unlink, missing_ok=True)
                return
            door, task = found
            await asyncio.to_thread(_remove, door.path, door.identity)
            task.cancel()
            await asyncio.wait([task])

    async def list_crews(self) -> Sequence[str]:
        """Crews that have a socket, whoever made it."""
        return await asyncio.to_thread(self._listed)

    def _listed(self) -> list[str]:
        return sorted(path.stem for path in self._directory.glob(f"[!.]*{SUFFIX}"))

    def _path(self, crew: str) -> Path:
        return self._directory / f"{crew}{SUFFIX}"

    async def _opened(self, crew: str) -> tuple[Door, asyncio.Task[None]]:
        path = self._path(crew)
        try:
            listener, identity = await asyncio.to_thread(_listen, path)
        except OSError as error:
            raise Unavailable(f"cannot open a way out for {crew}: {error}") from error
        dial = Dialler(self._threads, self._resolve, self._unfit, self._limits)
        door = Door(crew, path, identity, listener, dial, self._note, self._limits, self._everybody)
        return door, self._tasks.create_task(door.run(), name=f"egress {crew}")

    async def _note(self, row: AuditRow) -> None:
        await self.record(row)


def _remove(path: Path, identity: int) -> None:
    """Remove our socket; another factory of this home may have taken the crew, and the name, over."""
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_ino == identity:
            path.unlink()


def _listen(path: Path) -> tuple[socket.socket, int]:
    """Listen on a socket that appears under its name only when it answers, in the place of an old one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    fresh.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.setblocking(False)
        listener.bind(str(fresh))
        fresh.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
        identity = fresh.lstat().st_ino
        fresh.replace(path)
        stack.pop_all()
    return listener, identity
