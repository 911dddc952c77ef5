"""Run one server's program: lines in, lines out, in a session of its own whose processes all end with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from agent_runtime.servers.condition import Down
from agent_runtime.servers.limits import SERVER_FILE_MAX_BYTES, SERVER_LINE_MAX_BYTES, SERVER_OPEN_FILES_MAX
from agent_runtime.servers.words import Words
from wire.mcp.errors import McpError
from wire.mcp.messages import Lines

log = logging.getLogger(__name__)

# Killed processes are gone in milliseconds; what holds a pipe longer has left the group.
PIPES_MAX_S: Final = 1.0
# A program that ends closes its pipes a moment earlier; one that closes them and stays is of no use.
CLOSED_MAX_S: Final = 0.2
STEP_MAX_S: Final = 1.0
# Processes of a server are known by this variable wherever they go.
MARK: Final = "HYPERFACTORY_SERVER"
STRAYS_ROUNDS_MAX: Final = 5
# The kernel takes a server before the runtime when the sandbox is out of memory.
OOM_SCORE: Final = 900


class Stdio(asyncio.SubprocessProtocol):
    """One run of a program. `on_line` takes each line of its output, `on_end` is called once, with the cause."""

    def __init__(
        self, words: Words, on_line: Callable[[bytes], None], on_end: Callable[[Down], None]
    ) -> None:
        self._words = words
        self._on_line = on_line
        self._on_end = on_end
        self._transport: asyncio.SubprocessTransport | None = None
        self._mark = os.urandom(8).hex()
        self._lines = Lines(SERVER_LINE_MAX_BYTES)
        self._cause: Down | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ending = False
        self._exited = asyncio.Event()
        self._disconnected = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._transport.get_pid() if self._transport is not None else 0

    async def start(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        """Start whole or not at all; `Down` where the program cannot be started."""
        starting = asyncio.get_running_loop().create_task(self._start(argv, cwd, env))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A cancelled `subprocess_exec` would leave the program's children behind.
            await asyncio.wait([starting])
            if starting.exception() is None:
                await self.end(patient=False)
            raise
        _limit(self.pid)

    async def _start(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        try:
            await asyncio.get_running_loop().subprocess_exec(
                lambda: self, *argv, cwd=cwd, env={**env, MARK: self._mark}, start_new_session=True
            )
        except FileNotFoundError as error:
            raise Down("CommandNotFound", f"cannot start '{argv[0]}': no such program") from error
        except BlockingIOError as error:
            raise Down("StartFailed", f"cannot start '{argv[0]}': the sandbox is out of processes") from error
        except (OSError, ValueError) as error:
            raise Down("StartFailed", f"cannot start '{argv[0]}': {error}") from error

    async def send(self, line: bytes) -> None:
        """Write a line; waits while the program does not read. The caller brings the deadline."""
        await self._writable.wait()
        self.send_now(line)

    def send_now(self, line: bytes) -> None:
        """Write a line that cannot wait; a program that never reads is ended before it fills our memory."""
        pipe = self._input()
        if self._cause is not None or pipe is None:
            return  # who waits for an answer has been told that there is none
        if pipe.get_write_buffer_size() > SERVER_LINE_MAX_BYTES:
            self.fail(Down("NotReading", "the server does not read its input"))
            return
        pipe.write(line)

    def fail(self, cause: Down) -> None:
        """End the program at once, for this cause."""
        self._cause = self._cause or cause
        self._signal(signal.SIGKILL)

    async def end(self, *, patient: bool) -> None:
        """End the program with its whole group; if patient, by closing its input first, then by signals."""
        if self._transport is None:
            return
        self._ending = True
        pipe = self._input()
        if pipe is not None:
            pipe.close()
        if patient and not await self._gone(STEP_MAX_S):
            self._signal(signal.SIGTERM)
            await self._gone(STEP_MAX_S)
        self._signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(PIPES_MAX_S):
                await self._exited.wait()
                await self._disconnected.wait()
        except TimeoutError:
            log.info("a server left a process behind that holds its pipes")
        finally:
            self._transport.close()
            await asyncio.to_thread(_kill_marked, self._mark)

    def _input(self) -> asyncio.WriteTransport | None:
        pipe = self._transport.get_pipe_transport(0) if self._transport is not None else None
        return pipe if isinstance(pipe, asyncio.WriteTransport) else None

    async def _gone(self, within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._exited.wait()
        return self._exited.is_set()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd != 1:
            self._words.take(data)
            return
        try:
            for line in self._lines.feed(data):
                if self._cause is None:
                    self._on_line(line)
        except McpError as error:
            self.fail(Down("LineTooLong", f"the server wrote what is no message: {error}"))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It hears us no more, or says no more; what it says on standard error does not matter."""
        if fd != 2 and not self._exited.is_set() and not self._ending:
            which = "input" if fd == 0 else "output"
            cause = Down("Crashed", f"the server closed its {which}")
            asyncio.get_running_loop().call_later(CLOSED_MAX_S, self._fail_unless_gone, cause)

    def _fail_unless_gone(self, cause: Down) -> None:
        if not self._exited.is_set() and not self._ending and not _has_ended(self.pid):
            self.fail(cause)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def process_exited(self) -> None:
        self._signal(signal.SIGKILL)  # its children do not outlive it
        self._writable.set()
        self._exited.set()
        self._cause = self._cause or self._crash()
        self._on_end(self._cause)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnected.set()

    def _crash(self) -> Down:
        code = self._transport.get_returncode() if self._transport is not None else None
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"exited with code {code}"
        last = self._words.last()
        return Down("Crashed", f"the server {how}" + (f": {last}" if last else ""))


def _has_ended(pid: int) -> bool:
    """Whether a child is no more, though nobody may have been told yet."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _kill_marked(mark: str) -> None:
    """End whatever runs with this mark in its environment: a browser that a server has started in a session of its
    own, say. What starts others while we look is looked at again."""
    wanted = f"{MARK}={mark}".encode()
    for _ in range(STRAYS_ROUNDS_MAX):
        found = [at for at in Path("/proc").iterdir() if at.name.isdigit() and _carries(at, wanted)]
        for at in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(at.name), signal.SIGKILL)
        if not found:
            return


def _carries(process: Path, wanted: bytes) -> bool:
    try:
        return wanted in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False  # it has ended, or is somebody else's


def _limit(pid: int) -> None:
    """Set limits from outside: `preexec_fn` would fork this process with all its threads.

    None on address space, of which a JavaScript engine reserves far more than it uses: the sandbox bounds memory.
    """
    bounds = {
        resource.RLIMIT_FSIZE: SERVER_FILE_MAX_BYTES,
        resource.RLIMIT_NOFILE: SERVER_OPEN_FILES_MAX,
        resource.RLIMIT_CORE: 0,
    }
    try:
        for which, bound in bounds.items():
            resource.prlimit(pid, which, (bound, bound))
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))
    except (ProcessLookupError, FileNotFoundError):
        return  # it has ended already
    except (PermissionError, ValueError, OSError) as error:
        # The sandbox's own limits still hold; these only spare the agent from its servers.
        log.warning("cannot set a server's limits", extra={"error": str(error)})
