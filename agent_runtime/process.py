"""Run a program as a subprocess with bounded time, output and resources, and end its whole process group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent_runtime import software
from agent_runtime.limits import (
    FILE_MAX_BYTES,
    OPEN_FILES_MAX,
    OUTPUT_MAX_BYTES,
    SUBPROCESSES_MAX,
    TASK_MAX_S,
)
from wire.errors import Exhausted, Invalid

log = logging.getLogger(__name__)

# Killed processes are gone in milliseconds; what holds a pipe longer has left the group.
PIPES_MAX_S: Final = 1.0
MEMORY_DEFAULT_BYTES: Final = 256 * 1024 * 1024
WRITTEN_MAX_BYTES: Final = 64 * FILE_MAX_BYTES


class Completed(NamedTuple):
    """How a program ended. `code` is negative for a signal; `truncated` tells that output was thrown away."""

    code: int
    stdout: str
    stderr: str
    timed_out: bool = False
    truncated: bool = False


class Runner:
    """Runs the programs of one agent: in its workspace, never more than `SUBPROCESSES_MAX` at once."""

    def __init__(self, workspace: Path, env: Mapping[str, str] | None = None) -> None:
        self._workspace = workspace
        self._env = dict(env or {})
        self._running = 0

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        cwd: Path | None = None,
        memory_max_bytes: int = MEMORY_DEFAULT_BYTES,
        output_max_bytes: int = OUTPUT_MAX_BYTES,
    ) -> Completed:
        """Run to the end, or kill the program's group at the timeout or on cancellation."""
        if self._running >= SUBPROCESSES_MAX:
            raise Exhausted(f"cannot run more than {SUBPROCESSES_MAX} programs at once", quota="subprocesses")
        timeout_s = min(timeout_s, TASK_MAX_S)
        self._running += 1
        try:
            transport, program = await self._started(argv, cwd or self._workspace, output_max_bytes)
            try:
                _limit(transport.get_pid(), memory_max_bytes, timeout_s)
                timed_out = await _finish(transport, program, stdin, timeout_s)
            finally:
                await _end(transport, program)
            return program.completed(transport.get_returncode(), timed_out)
        finally:
            self._running -= 1

    async def _started(self, argv: Sequence[str], cwd: Path, output_max_bytes: int) -> _Running:
        """Start whole or not at all: a cancelled `subprocess_exec` would kill the program but not its group,
        and then wait without limit for whoever holds its pipes."""
        starting = asyncio.get_running_loop().create_task(self._start(argv, cwd, output_max_bytes))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            if starting.exception() is None:
                await _end(*starting.result())
            raise

    async def _start(self, argv: Sequence[str], cwd: Path, output_max_bytes: int) -> _Running:
        try:
            return await asyncio.get_running_loop().subprocess_exec(
                lambda: _Program(output_max_bytes),
                *argv,
                cwd=cwd,
                env={**software.environment(self._workspace), **self._env},
                start_new_session=True,
            )
        except BlockingIOError as error:
            raise Exhausted(
                "cannot start a program: the sandbox is out of processes", quota="pids"
            ) from error
        except (OSError, ValueError) as error:
            raise Invalid(f"cannot start '{argv[0]}': {error}") from error


class _Program(asyncio.SubprocessProtocol):
    """Keeps the first bytes of each pipe and throws the rest away, so that the program never blocks on us.

    A protocol of our own because a `Process.wait()` also waits for the pipes, which a grandchild that left
    the group may hold open for ever.
    """

    def __init__(self, output_max_bytes: int) -> None:
        self._max_bytes = output_max_bytes
        self._kept = {1: bytearray(), 2: bytearray()}
        self._truncated = False
        self.exited = asyncio.Event()
        self.disconnected = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self._kept[fd]
        room = self._max_bytes - len(kept)
        kept += data[:room]
        self._truncated = self._truncated or len(data) > room

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.disconnected.set()

    def completed(self, code: int | None, timed_out: bool) -> Completed:
        out, err = (self._kept[fd].decode(errors="replace") for fd in (1, 2))
        return Completed(-signal.SIGKILL if code is None else code, out, err, timed_out, self._truncated)


def _limit(pid: int, memory_max_bytes: int, cpu_max_s: float) -> None:
    """Set rlimits from outside: `preexec_fn` would fork this process with all its threads."""
    cpu_s = max(1, int(cpu_max_s) + 1)
    bounds = {
        resource.RLIMIT_AS: memory_max_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: WRITTEN_MAX_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES_MAX,
        resource.RLIMIT_CORE: 0,
    }
    try:
        for which, bound in bounds.items():
            resource.prlimit(pid, which, (bound, bound))
    except ProcessLookupError:
        return  # it has ended already
    except (PermissionError, ValueError) as error:
        # The sandbox's own limits still hold; these only spare the agent from its own tools.
        log.warning("cannot set a program's limits", extra={"error": str(error)})


_Running = tuple[asyncio.SubprocessTransport, _Program]


async def _finish(
    transport: asyncio.SubprocessTransport, program: _Program, stdin: bytes, timeout_s: float
) -> bool:
    """Feed the program and wait for its exit; tells whether time ran out first."""
    pipe = transport.get_pipe_transport(0)
    if isinstance(pipe, asyncio.WriteTransport):
        pipe.write(stdin)
        pipe.close()
    try:
        async with asyncio.timeout(timeout_s):
            await program.exited.wait()
    except TimeoutError:
        return True
    return False


async def _end(transport: asyncio.SubprocessTransport, program: _Program) -> None:
    """Kill what is left of the program's group, reap it, and take what its pipes still hold."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(transport.get_pid(), signal.SIGKILL)
    try:
        async with asyncio.timeout(PIPES_MAX_S):
            await program.exited.wait()
            await program.disconnected.wait()
    except TimeoutError:
        log.info("a program left a process behind that holds its pipes")
    finally:
        transport.close()
