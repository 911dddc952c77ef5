"""Keep a service running: adopt it or start it, notice its exit, restart it with backoff, stop it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from embedded.process import Command, Process, bound_log, find, named, spawn, tail

READY_POLL_MIN_S = 0.02
READY_POLL_MAX_S = 0.1
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 10.0
STEADY_S = 30.0
"""A service that ran this long begins its backoff anew."""
KILL_WITHIN_S = 5.0
LOG_CHECK_S = 20.0
START_ATTEMPTS = 5

_log = structlog.get_logger("embedded.supervisor")


class CannotStartError(Exception):
    """A service did not become ready; the sentence ends with the tail of its log."""


async def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Service:
    """A command, how to see that it is ready, and how long it may take."""

    command: Command
    ready: Callable[[], Awaitable[bool]]
    prepare: Callable[[], Awaitable[None]] = _nothing
    """Runs before each start, never before an adoption."""
    ready_within_s: float = 30.0
    stop_within_s: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def name(self) -> str:
        return self.command.name


class Supervised:
    """One service in our care."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.restarts = 0
        self._process: Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.running else None

    @property
    def adopted(self) -> bool:
        return self._process is not None and self._process.adopted

    async def start(self) -> None:
        """Adopt the running process or start one; return when it is ready."""
        self._stopping = False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.service.ready_within_s
        for attempt in range(START_ATTEMPTS):
            self._process = await self._adopt() or await self._spawn()
            if await self._becomes_ready(self._process, deadline):
                return
            if loop.time() >= deadline or attempt == START_ATTEMPTS - 1:
                break
            await asyncio.sleep(BACKOFF_MIN_S * 2**attempt)  # e.g. Postgres beside its predecessor's zombie
        if self._process is not None:
            await _end(self._process, signal.SIGKILL, 0.0)
        raise CannotStartError(f"cannot start '{self.service.name}': {tail(self.service.command)}")

    async def keep(self) -> None:
        """Restart the service whenever it exits, until stop() is called."""
        loop = asyncio.get_running_loop()
        backoff_s = 0.0
        while not self._stopping:
            since = loop.time()
            code = await self._watch()
            if self._stopping:
                return
            backoff_s = 0.0 if loop.time() - since > STEADY_S else backoff_s
            _log.warning("service exited", action="service.exited", service=self.service.name, code=code)
            await asyncio.sleep(backoff_s)
            backoff_s = min(BACKOFF_MAX_S, max(BACKOFF_MIN_S, backoff_s * 2))
            await self._restart()

    async def stop(self) -> None:
        """End the service: its own signal first, SIGKILL at the deadline. Harmless when it does not run."""
        self._stopping = True
        found = None if self._process else find(self.service.command)
        process = self._process or (found[0] if found else None)
        if process is not None:
            await _end(process, self.service.stop_signal, self.service.stop_within_s)
        self._process = None

    def release(self) -> None:
        """Let go of the service and leave it running."""
        self._stopping = True
        if self._process is not None:
            self._process.release()

    async def _adopt(self) -> Process | None:
        found = find(self.service.command)
        if found is None:
            return None
        process, digest = found
        if digest == self.service.command.digest():
            return process
        await _end(process, self.service.stop_signal, self.service.stop_within_s)
        return None

    async def _spawn(self) -> Process:
        await self.service.prepare()
        return spawn(self.service.command)

    async def _restart(self) -> None:
        try:
            await self.start()
        except CannotStartError as error:
            _log.error(
                "service not ready", action="service.failed", service=self.service.name, why=str(error)
            )
            return
        self.restarts += 1
        _log.info("service restarted", action="service.restarted", service=self.service.name, pid=self.pid)

    async def _becomes_ready(self, process: Process, deadline: float) -> bool:
        """Ask until the service answers; False when it exits first or the deadline passes."""
        loop = asyncio.get_running_loop()
        pause_s = READY_POLL_MIN_S
        while process.running and loop.time() < deadline:
            # Another launcher may have been first: then it is not our process that answers, and ours ends.
            if await self.service.ready() and named(self.service.command) == process.pid:
                return process.running
            await asyncio.sleep(pause_s)
            pause_s = min(READY_POLL_MAX_S, pause_s * 1.3)
        return False

    async def _watch(self) -> int | None:
        """Wait for the exit; meanwhile keep the log bounded."""
        process = self._process
        while process is not None:
            try:
                async with asyncio.timeout(LOG_CHECK_S):
                    return await process.exited()
            except TimeoutError:
                await asyncio.to_thread(bound_log, self.service.command.log)
        return None


async def run_once(command: Command, within_s: float) -> int | None:
    """Run a command to its end and return its exit code; a leftover of an earlier attempt is ended first."""
    found = find(command)
    if found is not None:
        await _end(found[0], signal.SIGKILL, 0.0)
    process = spawn(command)
    try:
        async with asyncio.timeout(within_s):
            return await process.exited()
    finally:
        await _end(process, signal.SIGKILL, 0.0)


async def _end(process: Process, first: int, within_s: float) -> None:
    process.send(first)
    try:
        async with asyncio.timeout(within_s):
            await process.exited()
    except TimeoutError:
        process.send(signal.SIGKILL)
        async with asyncio.timeout(KILL_WITHIN_S):
            await process.exited()
