"""Doorbells inside a process: a ring wakes everybody who waits, and is not lost between two waits."""

from __future__ import annotations

import asyncio

from factory_server.services.hub import Hub


async def test_a_ring_between_two_waits_is_not_lost():
    hub = Hub()
    with hub.subscribe("c1") as rings:
        hub.ring("c1")
        assert await rings.wait(5)
        assert not await rings.wait(0), "one ring wakes once"
        hub.ring("c1")
        hub.ring("c1")
        assert await rings.wait(5)


async def test_a_ring_wakes_all_who_wait_for_the_key_and_nobody_else():
    hub = Hub()
    with hub.subscribe("c1") as one, hub.subscribe("c1") as two, hub.subscribe("c2") as other:
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(w.wait(5)) for w in (one, two)]
            quiet = group.create_task(other.wait(0.01))
            await asyncio.sleep(0)
            hub.ring("c1")
        assert [w.result() for w in waits] == [True, True]
        assert not quiet.result()


async def test_nothing_is_kept_of_those_who_left():
    hub = Hub()
    with hub.subscribe("c1"):
        pass
    hub.ring("c1")
    assert not hub._waiters
