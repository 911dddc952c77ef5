"""Two factories on one host share a state directory: one fork server, and each can use what the other made."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from factory_server.core.errors import NotFound
from factory_server.core.sandbox import SandboxSpec
from factory_server.drivers.namespaces.driver import NamespacesDriver
from tests.contract.driver_suite import DEADLINE_S, exits_of, path_of, until
from tests.contract.small_agent import ask
from tests.contract.test_drivers import NamespacesRig

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the full tier needs root")

Pair = tuple[NamespacesDriver, NamespacesDriver]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Two drivers that are started at the same moment."""
    with tempfile.TemporaryDirectory(prefix="hft") as path:
        rig = NamespacesRig(Path(path), rootless=False)
        one, two = rig.driver, rig.reopen()
        async with asyncio.TaskGroup() as group:
            group.create_task(one.start())
            group.create_task(two.start())
        yield one, two
        await two.close()
        await one.terminate()


async def test_what_one_made_the_other_publishes_and_wires(pair: Pair) -> None:
    one, two = pair
    alice = await one.create(SandboxSpec("alice-g1"), deadline_s=DEADLINE_S)
    await two.create(SandboxSpec("bob-g1"), deadline_s=DEADLINE_S)
    bob = str(path_of(await one.publish("bob-g1")))
    await two.wire("alice-g1", {"bob.sock": bob})
    assert (await ask(alice.control, {"do": "peers"}))["names"] == ["bob.sock"]
    assert {s.instance for s in await one.list()} == {s.instance for s in await two.list()}


async def test_what_one_destroyed_is_gone_for_the_other(pair: Pair) -> None:
    one, two = pair
    await one.create(SandboxSpec("alice-g1"), deadline_s=DEADLINE_S)
    async with exits_of(one) as exit_of:
        await two.destroy("alice-g1")
        assert (await exit_of("alice-g1")).instance == "alice-g1"
    with pytest.raises(NotFound):
        await one.publish("alice-g1")


async def test_a_replica_that_starts_spares_what_another_is_making(pair: Pair) -> None:
    one, two = pair
    specs = [SandboxSpec(f"n{number}-g1") for number in range(8)]
    async with asyncio.TaskGroup() as group:
        making = [group.create_task(one.create(spec, deadline_s=DEADLINE_S)) for spec in specs]
        for _ in range(4):
            await two.start()

    async def answers() -> bool:
        return all(["pid" in await ask(task.result().control, {"do": "ping"}) for task in making])

    await until(answers, what="every instance answers")
