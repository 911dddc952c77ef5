"""A machine for each test: real agents in fake sandboxes, a real PostgreSQL, a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from support.http_face import Face, open_face
from support.site import Plant, Site, open_site
from support.valkey import ValkeyServer, running_valkey


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """The session's server."""
    with running_valkey() as server:
        yield server


@pytest.fixture
def valkey(valkey_server: ValkeyServer) -> ValkeyServer:
    """The server, empty."""
    valkey_server.empty()
    return valkey_server


@pytest.fixture
async def site(postgres_url: str, valkey: ValkeyServer) -> AsyncIterator[Site]:
    """A machine without a factory."""
    async with open_site(postgres_url, valkey.url) as opened:
        yield opened


@pytest.fixture
async def plant(site: Site) -> Plant:
    """A factory that runs."""
    return await site.plant()


@pytest.fixture
async def face(plant: Plant) -> AsyncIterator[Face]:
    """Its HTTP side."""
    async with open_face(plant) as opened:
        yield opened
