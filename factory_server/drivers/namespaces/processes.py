"""A sandbox's processes by way of /proc, for hosts that give us no cgroups."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_STOP_ROUNDS_MAX: Final = 20


def tree(pid: int) -> Iterator[int]:
    """`pid` and all its descendants; everything in a pid namespace descends from its pid 1."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = " ".join((task / "children").read_text() for task in tasks)
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children.split():
        yield from tree(int(child))


def stop(pid: int) -> None:
    """Stop all of them; repeated until no new one was forked meanwhile."""
    stopped: set[int] = set()
    for _ in range(_STOP_ROUNDS_MAX):
        fresh = set(tree(pid)) - stopped
        if not fresh:
            return
        for number in fresh:
            _send(number, signal.SIGSTOP)
        stopped |= fresh


def resume(pid: int) -> None:
    """Let all of them run again."""
    for number in list(tree(pid)):
        _send(number, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def usage(pid: int) -> tuple[int, int, float]:
    """Resident memory in bytes (shared pages counted for each process), processes, seconds of CPU."""
    memory = count = ticks = 0
    for number in tree(pid):
        try:
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        count += 1
        ticks += sum(map(int, fields[11:15]))  # own and of children that were waited for
        memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return memory, count, ticks / os.sysconf("SC_CLK_TCK")
