"""Wait a moment for the first word of agents that have just begun to serve: a list made sooner lacks their tools.

A crew is READY when its agents answer; what they offer comes a little later, over their sessions. Only agents that
never said anything are waited for, and each only for `FIRST_WORD_S` after it turned up: who hangs delays no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from factory_server.core.lifecycle import AgentState
from factory_server.core.model import AgentRow

FIRST_WORD_S = 1.0
EXPECTED = frozenset({AgentState.WARMING, AgentState.READY, AgentState.BUSY})


class FirstWords:
    """Agents that serve, or are about to, and have never said what they offer, by crew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silent: dict[str, dict[str, tuple[AgentState, float]]] = {}
        self._turned: dict[str, asyncio.Event] = {}

    def look(self, agent: AgentRow, *, heard: bool) -> None:
        """An agent's row as it is now."""
        if heard or agent.state not in EXPECTED:
            self._drop(agent.crew, agent.id)
            return
        silent = self._silent.setdefault(agent.crew, {})
        if silent.get(agent.id, ("",))[0] != agent.state:
            silent[agent.id] = (agent.state, self._clock() + FIRST_WORD_S)

    async def wait(self, crew: str) -> None:
        """Until all of the crew have said it, or had their time for it."""
        while silent := self._silent.get(crew):
            left_s = max(until for _, until in silent.values()) - self._clock()
            if left_s <= 0:
                return
            turned = self._turned.setdefault(crew, asyncio.Event())
            try:
                async with asyncio.timeout(left_s):
                    await turned.wait()
            except TimeoutError:
                continue  # another one may have turned up meanwhile

    def _drop(self, crew: str, agent: str) -> None:
        silent = self._silent.get(crew)
        if silent is None or silent.pop(agent, None) is None:
            return
        if not silent:
            del self._silent[crew]
        if (turned := self._turned.pop(crew, None)) is not None:
            turned.set()
