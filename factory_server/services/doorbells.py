"""Carry rings between replicas: what commits here is rung on the bus, what is rung there wakes waiters here."""

from __future__ import annotations

import asyncio
import logging

from factory_server.core.errors import FactoryError
from factory_server.services.hub import REGISTRY, TASK, TOOLS, Hub
from factory_server.services.parts import Parts
from factory_server.services.reconciler import Reconciler
from factory_server.services.watch import ALL

log = logging.getLogger("factory.doorbells")

PENDING_MAX = 10_000
TOOLS_WORD = "+tools"
"""Among the crews of a ring: what agents said of their tools was stored. No crew is called so."""
LOG_MARK = "="
"""Before a crew of a ring: its log grew, for whoever watches; its keeper and the registry have nothing to see."""
TASK_WORD = f"+{TASK}"
"""With a task's id, among the crews of a ring: who carries the task shall look whether it is still to be done."""


class Doorbells:
    """Hints only: a lost ring costs a poll's time. `run` must be a task of the owner's."""

    def __init__(self, parts: Parts, reconciler: Reconciler) -> None:
        self._parts = parts
        self._reconciler = reconciler
        self._pending: set[str] = set()
        self._wake = asyncio.Event()

    def committed(
        self, crews: list[str], agents: bool, tools: bool = False, *, log_only: bool = False
    ) -> None:
        """A commit of this process changed these crews (and agents, and what is known of tools)."""
        ring_here(self._parts.hub, crews, agents)
        if agents:
            for crew in crews:
                self._reconciler.nudge(crew)
        if len(self._pending) < PENDING_MAX:
            words = [LOG_MARK + crew for crew in crews] if log_only else crews
            self._pending.update([*words, TOOLS_WORD] if tools else words)
            self._wake.set()

    async def run(self) -> None:
        """Ring outwards and listen inwards until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._outwards(), name="doorbells out")
            group.create_task(self._inwards(), name="doorbells in")

    async def _outwards(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            crews, self._pending = self._pending, set()
            try:
                await self._parts.bus.ring(f"{self._parts.owner} {' '.join(sorted(crews))}")
            except FactoryError as error:
                log.debug("doorbell is silent", extra={"error": str(error)})

    async def _inwards(self) -> None:
        async for topic in self._parts.bus.doorbells():
            owner, *words = topic.split(" ")
            if owner != self._parts.owner:
                self._heard(words)

    def _heard(self, words: list[str]) -> None:
        hub = self._parts.hub
        if TOOLS_WORD in words:
            words.remove(TOOLS_WORD)
            hub.ring(TOOLS)
        for word in [word for word in words if word.startswith(TASK_WORD)]:
            words.remove(word)
            hub.ring(word.removeprefix("+"))
        changed = [word for word in words if not word.startswith(LOG_MARK)]
        ring_here(hub, [word.removeprefix(LOG_MARK) for word in words], bool(changed))
        for crew in changed:
            self._reconciler.kick(crew)


def ring_here(hub: Hub, crews: list[str], agents: bool) -> None:
    """Wake who waits in this process."""
    for crew in crews:
        hub.ring(crew)
    if crews:
        hub.ring(ALL)
    if agents:
        hub.ring(REGISTRY)
