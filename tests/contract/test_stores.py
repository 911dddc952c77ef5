"""Run the store suite over every store there is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hibernation_suite import HibernationSuite
from network_store_suite import NetworksSuite
from skills_suite import SkillSuite
from store_suite import StoreSuite
from tools_suite import ToolsSuite

from factory_server.core.ports import Store
from factory_server.store import PostgresStore


class TestPostgresStore(StoreSuite, HibernationSuite, ToolsSuite, NetworksSuite, SkillSuite):
    """The store on a real PostgreSQL."""

    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[Store]:
        """An open store on an empty database."""
        opened = PostgresStore(postgres_url)
        await opened.open()
        yield opened
        await opened.close()
