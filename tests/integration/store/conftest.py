"""Open stores on a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from factory_server.store import PostgresStore


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    """An open store on an empty database."""
    opened = PostgresStore(postgres_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def replicas(postgres_url: str) -> AsyncIterator[list[PostgresStore]]:
    """Three stores on one database, as three factories have them."""
    opened = [PostgresStore(postgres_url) for _ in range(3)]
    for each in opened:
        await each.open()
    yield opened
    for each in opened:
        await each.close()
