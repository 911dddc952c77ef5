"""One running factory for all acceptance tests that do not need a fresh one."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from running import Client, Running, connected, running_proxy, running_stack


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """The stack."""
    with running_stack() as stack:
        yield stack


@pytest.fixture(scope="session")
def proxy_url(running: Running) -> Iterator[str]:
    """`hyperfactory proxy` of the stack, and its URL."""
    with running_proxy(running) as url:
        yield url


@pytest.fixture
async def client(running: Running) -> AsyncIterator[Client]:
    """A client of this test's own."""
    async with connected(running) as connection:
        yield connection


@pytest.fixture
async def crew(client: Client) -> AsyncIterator[object]:
    """A READY crew of three, disbanded at the end."""
    made = await client.assemble()
    yield made
    await client.disband(made.id)
