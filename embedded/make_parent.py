"""Notice that `make` was interrupted: it hands SIGTERM on to its recipe, but not SIGINT, and waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

LOOK_EVERY_S = 0.3


async def interrupted() -> None:
    """Return when the parent has taken a SIGINT that it used to catch, or is gone."""
    parent = os.getppid()
    if not _catches_sigint(parent):
        await asyncio.Event().wait()
    while os.getppid() == parent and _catches_sigint(parent):  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(LOOK_EVERY_S)


def _catches_sigint(pid: int) -> bool:
    """Make gives a signal back its default as soon as it has caught it: the kernel shows that."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (signal.SIGINT - 1) & 1)
