"""Run the suite of vectors over every store there is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from vectors_suite import VectorsSuite

from factory_server.core.ports import Store
from factory_server.store import PostgresStore


class TestPostgresVectors(VectorsSuite):
    """The store on a real PostgreSQL."""

    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[Store]:
        """An open store on an empty database."""
        opened = PostgresStore(postgres_url)
        await opened.open()
        yield opened
        await opened.close()
