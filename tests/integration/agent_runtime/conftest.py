"""Fixtures of the runtime's tests: a short home, a world with an authority, and one with a bus."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from factory_server.bus import RedisBus
from tests.integration.agent_runtime.parts import Valkey, World


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory whose socket paths stay under 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="hfa", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def world(home: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(home, stack)


@pytest.fixture
async def valkey(home: Path) -> AsyncIterator[Valkey]:
    directory = home / "v"
    directory.mkdir()
    server = Valkey(directory)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def bussed(world: World, valkey: Valkey) -> AsyncIterator[World]:
    """A world with a bus."""
    world.valkey = valkey
    world.bus = RedisBus(valkey.url, secret=b"test")
    world.wire_bus()
    yield world
    await world.bus.close()
