"""A cancellation is never lost in the bus's client: a factory that shuts down must end."""

from __future__ import annotations

import asyncio

import pytest
from support.valkey import ValkeyServer

from factory_server.bus import RedisBus


async def listen(bus: RedisBus) -> None:
    async for _ in bus.doorbells():
        continue


async def ask(bus: RedisBus) -> None:
    while True:
        await bus.incarnation()


@pytest.mark.parametrize("use", [listen, ask])
async def test_a_cancellation_at_any_moment_of_connecting_ends_the_task(valkey: ValkeyServer, use):
    for steps in range(40):
        bus = RedisBus(valkey.url, secret=b"test")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(use(bus))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            _, pending = await asyncio.wait((task,), timeout=1)
            assert not pending, f"lost after {steps} steps"
        await bus.close()
