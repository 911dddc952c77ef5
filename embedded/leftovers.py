"""End what a gateway left behind when it was killed before it could: its Traefik."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def end_traefik(home: Path) -> list[int]:
    """Kill each Traefik that serves this home's gateway folder; return their pids.

    Only for the end of a stack: while it runs, the next gateway adopts the Traefik and keeps its connections.
    """
    ended = []
    for pid in _traefiks(home):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if pid in _traefiks(
                    home
                ):  # asked after the descriptor is ours: now it cannot become another's
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    ended.append(pid)
            finally:
                os.close(pidfd)
    return ended


def _traefiks(home: Path) -> Iterator[int]:
    folder = f"{home / 'gateway'}/".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"traefik") and any(folder in word for word in words[1:]):
                yield int(process.name)
