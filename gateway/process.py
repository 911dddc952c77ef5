"""One child process that may outlive us: start it, find it again by its pidfile, learn of its end by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOG_MAX_BYTES: Final = 8 * 1024 * 1024
_START_TIME_FIELD: Final = 19
"""Index of `starttime` among the fields of /proc/<pid>/stat that follow the command's closing bracket."""

# The shell writes its own stat line and becomes the program: there is no moment in which the program runs
# and its pidfile is missing, however we die.
_LAUNCH: Final = """
umask 077
{ cat "/proc/$$/stat"; printf "%s\\n" "$2"; } >"$1.new" && mv "$1.new" "$1" && shift 2 && exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and where its pidfile and log are. `digest` names what it was started with."""

    argv: Sequence[str]
    digest: str
    pidfile: Path
    log: Path


class Process:
    """A running process, ours or adopted."""

    def __init__(self, pid: int, pidfd: int, digest: str, *, adopted: bool) -> None:
        self.pid = pid
        self.digest = digest
        self.adopted = adopted
        self._pidfd = pidfd
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._on_exit)

    async def exited(self) -> None:
        await self._gone.wait()

    def send(self, signum: int) -> None:
        """Send a signal to this very process; its pid cannot be mistaken for a later one."""
        if not self._gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, and end it when it does not in time."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.exited()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.exited()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # adopted: init reaps it
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self._gone.set()


def spawn(command: Command) -> Process:
    """Start the command in a session of its own: the terminal's SIGINT is ours to handle, not its."""
    if command.log.exists() and command.log.stat().st_size > LOG_MAX_BYTES:
        os.truncate(command.log, 0)
    launcher = ["/bin/sh", "-c", _LAUNCH, "launch", str(command.pidfile), command.digest, *command.argv]
    pid = os.posix_spawn(
        launcher[0],
        launcher,
        # Not our environment: Traefik takes settings from variables as well.
        {"PATH": os.defpath, "HOME": str(command.pidfile.parent)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(command.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
    )
    return Process(pid, os.pidfd_open(pid), command.digest, adopted=False)


def find(pidfile: Path) -> Process | None:
    """The process that the pidfile names, if it still runs."""
    try:
        stat, _, digest = pidfile.read_text().strip().partition("\n")
    except FileNotFoundError:
        return None
    try:
        pid = int(stat.split(" ", 1)[0])
        pidfd = os.pidfd_open(pid)
    except ValueError:
        return None
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
        return None
    if start_time(stat) != _start_time_now(pid):  # asked after the pidfd is ours: it cannot change any more
        os.close(pidfd)
        return None
    return Process(pid, pidfd, digest, adopted=True)


def start_time(stat: str) -> str:
    """The start time in a line of /proc/<pid>/stat; empty where the line is not one, or of a dead process."""
    fields = stat.rpartition(")")[2].split()
    if len(fields) <= _START_TIME_FIELD or fields[0] in "ZX":
        return ""
    return fields[_START_TIME_FIELD]


def _start_time_now(pid: int) -> str | None:
    try:
        return start_time(Path(f"/proc/{pid}/stat").read_text()) or None
    except (FileNotFoundError, ProcessLookupError):
        return None
