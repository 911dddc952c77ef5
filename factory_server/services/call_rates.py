"""How many tools each caller may call in a second: MCP demands of servers that they limit it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from factory_server.core.errors import Exhausted

CALLS_PER_S: Final = 5000.0
"""More than one core carries: by default it stops who has lost control, and nobody else."""
BURST_S: Final = 2.0
"""A caller that was quiet may call at once what it may call in so long."""
ROUNDING_S: Final = 1e-6
"""So that a whole burst is one though its parts do not add up to the last bit."""
CALLERS_MAX: Final = 10_000
"""Callers remembered; who has not called for a burst's time is forgotten before."""


class CallRates:
    """A bucket for each caller, in this process alone. Kept is when it will be full again; full ones are not."""

    def __init__(self, per_s: float = CALLS_PER_S, now: Callable[[], float] = time.monotonic) -> None:
        """`per_s` calls of each caller; 0: as many as they like."""
        self.per_s = per_s
        self._now = now
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str) -> None:
        """Count one call. Exhausted, with the time after which there is room."""
        if not self.per_s:
            return
        now = self._now()
        one_s = 1 / self.per_s
        full_at = max(self._full_at.get(caller, 0.0), now) + one_s
        room_s = max(BURST_S, one_s)
        if full_at - now > room_s + ROUNDING_S:
            raise Exhausted(
                f"a caller may call {self.per_s:g} tools a second",
                retry_after_s=full_at - now - room_s,
                quota="tool calls of a caller",
            )
        self._full_at[caller] = full_at
        if len(self._full_at) > CALLERS_MAX:
            self._forget(now)

    def _forget(self, now: float) -> None:
        self._full_at = {caller: at for caller, at in self._full_at.items() if at > now}
        while len(self._full_at) > CALLERS_MAX:
            del self._full_at[next(iter(self._full_at))]
