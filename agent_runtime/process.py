"""Run a program as a subprocess with bounded time, output and resources, and end its whole process group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent_runtime.limits import (
    FILE_MAX_BYTES,
    OPEN_FILES_MAX,
    OUTPUT_MAX_BYTES,
    SUBPROCESSES_MAX,
    TASK_MAX_S,
)
from wire.errors import Exhausted, Invalid

log = logging.getLogger(__name__)

READ_CHUNK_BYTES: Final = 16 * 1024
MEMORY_DEFAULT_BYTES: Final = 256 * 1024 * 1024
WRITTEN_MAX_BYTES: Final = 64 * FILE_MAX_BYTES
# Of our own environment only these reach a program: the rest may carry secrets.
INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Completed:
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
        self._running += 1
        try:
            process = await self._start(argv, cwd or self._workspace)
            try:
                _limit(process.pid, memory_max_bytes, min(timeout_s, TASK_MAX_S))
                return await _finish(process, stdin, min(timeout_s, TASK_MAX_S), output_max_bytes)
            finally:
                await _end_group(process)
        finally:
            self._running -= 1

    async def _start(self, argv: Sequence[str], cwd: Path) -> asyncio.subprocess.Process:
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        try:
            return await asyncio.create_subprocess_exec(
                *argv,
                cwd=cwd,
                env={**inherited, "HOME": str(self._workspace), **self._env},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except BlockingIOError as error:
            raise Exhausted(
                "cannot start a program: the sandbox is out of processes", quota="pids"
            ) from error
        except (OSError, ValueError) as error:
            raise Invalid(f"cannot start '{argv[0]}': {error}") from error


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


async def _finish(
    process: asyncio.subprocess.Process, stdin: bytes, timeout_s: float, output_max_bytes: int
) -> Completed:
    assert process.stdin and process.stdout and process.stderr
    out, err = _Sink(process.stdout, output_max_bytes), _Sink(process.stderr, output_max_bytes)
    timed_out = False
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            group.create_task(_feed(process.stdin, stdin), name="feed")
            group.create_task(out.drain(), name="stdout")
            group.create_task(err.drain(), name="stderr")
            group.create_task(process.wait(), name="wait")
    except TimeoutError:
        timed_out = True
        await _end_group(process)
    code = process.returncode if process.returncode is not None else -signal.SIGKILL
    return Completed(code, out.text(), err.text(), timed_out, out.truncated or err.truncated)


async def _feed(pipe: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a program need not read its input
        pipe.write(data)
        await pipe.drain()
        pipe.close()


class _Sink:
    """Keeps the first bytes of a pipe and throws the rest away, so that the program never blocks on us."""

    def __init__(self, pipe: asyncio.StreamReader, max_bytes: int) -> None:
        self._pipe = pipe
        self._max_bytes = max_bytes
        self._data = bytearray()
        self.truncated = False

    async def drain(self) -> None:
        while chunk := await self._pipe.read(READ_CHUNK_BYTES):
            room = self._max_bytes - len(self._data)
            self._data += chunk[:room]
            self.truncated = self.truncated or len(chunk) > room

    def text(self) -> str:
        return self._data.decode(errors="replace")


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the program's group, and reap the program itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        await process.wait()
