"""Run the suite of searches over every way to search: all compared, and vector sets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.searching import Searching, searching
from support.valkey import ValkeyServer
from vector_search_suite import VectorSearchSuite

from factory_server.bus import vector_sets


class TestEveryVector(VectorSearchSuite):
    """Without an index."""

    @pytest.fixture
    async def searching(self, postgres_url: str) -> AsyncIterator[Searching]:
        """Only the store."""
        async with searching(postgres_url) as opened:
            yield opened


class TestVectorSets(VectorSearchSuite):
    """With an index on Redis 8."""

    indexes = True

    @pytest.fixture
    async def searching(
        self, postgres_url: str, redis8: ValkeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Searching]:
        """The store, and a server that has vector sets and all the time of the world."""
        monkeypatch.setattr(vector_sets, "LOOK_MAX_S", vector_sets.COMMAND_MAX_S)
        async with searching(postgres_url, redis8.url) as opened:
            yield opened

    async def ready(self, searching: Searching, crew: str) -> None:
        await searching.indexed(crew)
