"""Begin samples while the machine is quiet: others may share it."""

from __future__ import annotations

import asyncio
from pathlib import Path

WINDOW_S = 0.04
IDLE_MIN = 0.75
PATIENCE_S = 3.0
"""Then the sample is taken all the same, and not counted."""
_IDLE, _IOWAIT, _COUNTED = 3, 4, 8


class QuietGate:
    """Waits for quiet windows, and counts them."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self.asked = 0
        self.quiet = 0

    async def wait(self) -> bool:
        """True as soon as the machine was idle enough for a window; False when patience ends."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._patience_s
        self.asked += 1
        while loop.time() < ends:
            if await idle_for(WINDOW_S) > IDLE_MIN:
                self.quiet += 1
                return True
        return False


async def idle_for(window_s: float) -> float:
    """The idle part of all cores during the next so many seconds."""
    before = _ticks()
    await asyncio.sleep(window_s)
    after = _ticks()
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return (spent[_IDLE] + spent[_IOWAIT]) / max(sum(spent), 1)


def _ticks() -> list[int]:
    with Path("/proc/stat").open() as stat:
        return [int(word) for word in stat.readline().split()[1 : 1 + _COUNTED]]
