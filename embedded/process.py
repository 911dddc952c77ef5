"""One process that outlives us if it must: spawn it, adopt it by pidfile, learn of its exit by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from embedded import svcbox

LOG_MAX_BYTES = 8 * 1024 * 1024
"""A log grows to this, then its newer half moves to `.1` and it begins again."""
TAIL_BYTES = 2_000
TAIL_LINES = 8


@dataclass(frozen=True, slots=True)
class Box:
    """What a service that root starts may see and who it is: see svcbox."""

    uid: int
    root: str
    binds: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and where its pidfile and log are."""

    name: str
    argv: tuple[str, ...]
    home: Path
    env: Mapping[str, str] | None = None
    box: Box | None = None
    cwd: str = "/"

    @property
    def pidfile(self) -> Path:
        return self.home / "services" / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.home / "logs" / f"{self.name}.log"

    def digest(self) -> str:
        """Name this command line, so that a process started with another one is not adopted."""
        shape = [self.argv, asdict(self.box) if self.box else None]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]

    def spec(self) -> str:
        """Write the command as svcbox reads it."""
        return json.dumps(
            {
                "name": self.name,
                "argv": self.argv,
                "cwd": self.cwd,
                "pidfile": str(self.pidfile),
                "digest": self.digest(),
                "box": asdict(self.box) if self.box else None,
            }
        )


class Process:
    """A running process, ours or adopted."""

    def __init__(self, pid: int, pidfd: int, *, adopted: bool) -> None:
        self.pid = pid
        self.adopted = adopted
        self._pidfd = pidfd
        self._gone = asyncio.Event()
        self._code: int | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_exit)

    @property
    def running(self) -> bool:
        return not self._gone.is_set()

    async def exited(self) -> int | None:
        """Wait for the exit; return the code (negative: the signal), None when it was not our child."""
        await self._gone.wait()
        return self._code

    def send(self, signum: int) -> None:
        """Send a signal to this very process; its pid cannot be mistaken for a later one."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    def release(self) -> None:
        """Stop watching and leave the process alone."""
        if self.running:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._gone.set()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # adopted: init reaps it
            found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if found is not None:
                self._code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        os.close(self._pidfd)
        self._gone.set()


def spawn(command: Command) -> Process:
    """Start the command in a session of its own: the terminal's SIGINT is ours to handle, not its."""
    bound_log(command.log)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    launcher = [sys.executable, "-I", "-S", str(Path(svcbox.__file__).resolve()), command.spec()]
    pid = os.posix_spawn(
        sys.executable,
        launcher,
        dict(os.environ if command.env is None else command.env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(command.log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
    )
    return Process(pid, os.pidfd_open(pid), adopted=False)


def find(command: Command) -> tuple[Process, str] | None:
    """Return the running process of the command's name, with the digest it was started under."""
    try:
        record = svcbox.parse_record(command.pidfile.read_text())
    except FileNotFoundError:
        return None
    if record is None:
        return None
    try:
        pidfd = os.pidfd_open(record["pid"])
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
        return None
    if not svcbox.alive(record):  # asked after the descriptor is ours: now it cannot become another's
        os.close(pidfd)
        return None
    return Process(record["pid"], pidfd, adopted=True), record["digest"]


def named(command: Command) -> int | None:
    """Return the pid that the pidfile holds, alive or not."""
    try:
        record = svcbox.parse_record(command.pidfile.read_text())
    except FileNotFoundError:
        return None
    return record["pid"] if record else None


def tail(command: Command) -> str:
    """Return the log's last lines, for a sentence that says why a start failed."""
    with contextlib.suppress(FileNotFoundError), command.log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])
    return ""


def bound_log(log: Path) -> None:
    """Keep the log small. Writers append, so they go on at the new end after the truncation."""
    if not log.exists() or log.stat().st_size <= LOG_MAX_BYTES:
        return
    with log.open("rb") as file:
        file.seek(-LOG_MAX_BYTES // 2, os.SEEK_END)
        log.with_name(log.name + ".1").write_bytes(file.read())
    os.truncate(log, 0)


def is_running(home: Path, name: str) -> bool:
    """True when a service of that name runs under the home."""
    file = Command(name, (), home).pidfile
    record = svcbox.parse_record(file.read_text()) if file.exists() else None
    return record is not None and svcbox.alive(record)
