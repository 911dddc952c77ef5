"""What one replica commits wakes the right waiters of another: of a log that only grew, its watchers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from service_parts import parts

from factory_server.services.doorbells import Doorbells
from factory_server.services.hub import REGISTRY, TOOLS, Hub
from factory_server.services.parts import Parts
from factory_server.services.watch import ALL

WITHIN_S = 5.0


class Wire:
    """The bus between two replicas: who rings hears it, too."""

    def __init__(self) -> None:
        self.topics: list[asyncio.Queue[str]] = []

    async def ring(self, topic: str) -> None:
        for heard in self.topics:
            await heard.put(topic)

    async def doorbells(self) -> AsyncIterator[str]:
        mine: asyncio.Queue[str] = asyncio.Queue(10)
        self.topics.append(mine)
        while True:
            yield await mine.get()


class Keepers:
    """Whom a ring kicks."""

    def __init__(self) -> None:
        self.kicked: list[str] = []

    def kick(self, crew: str) -> None:
        self.kicked.append(crew)

    def nudge(self, crew: str) -> None:
        self.kicked.append(crew)


def replica(owner: str, wire: Wire) -> tuple[Parts, Keepers, Doorbells]:
    whole, keepers = replace(parts(bus=wire), owner=owner, hub=Hub()), Keepers()
    return whole, keepers, Doorbells(whole, keepers)


@pytest.mark.parametrize(
    ("commit", "kicked", "rung"),
    [
        ({"agents": True}, ["c1"], {"c1", ALL, REGISTRY}),
        ({"agents": False}, ["c1"], {"c1", ALL, REGISTRY}),
        ({"agents": False, "log_only": True}, [], {"c1", ALL}),
        ({"agents": False, "tools": True}, ["c1"], {"c1", ALL, REGISTRY, TOOLS}),
    ],
)
async def test_a_commit_elsewhere_wakes_those_whom_it_concerns(commit, kicked, rung):
    wire = Wire()
    _, _, there = replica("f2", wire)
    here, keepers, listening = replica("f1", wire)
    heard = {key: here.hub.subscribe(key) for key in ("c1", ALL, REGISTRY, TOOLS)}
    async with asyncio.TaskGroup() as group:
        lanes = [group.create_task(lane.run()) for lane in (there, listening)]
        while len(wire.topics) < len(lanes):
            await asyncio.sleep(0)
        with heard["c1"], heard[ALL], heard[REGISTRY], heard[TOOLS]:
            there.committed(["c1"], **commit)
            assert await heard["c1"].wait(WITHIN_S)
            assert {key for key, rings in heard.items() if key == "c1" or await rings.wait(0)} == rung
        for lane in lanes:
            lane.cancel()
    assert keepers.kicked == kicked
