"""Fixtures for every test: a real PostgreSQL and real Docker engines, one a session, one database a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import postgres
from support.engines import plain_engine, remapped_engine

__all__ = ["plain_engine", "postgres_server", "postgres_url", "remapped_engine"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """The session's server."""
    with postgres.running_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: postgres.PostgresServer) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    with postgres.empty_database(postgres_server) as url:
        yield url


@pytest.fixture
def blank_postgres_url(postgres_server: postgres.PostgresServer) -> str:
    """A database without any table."""
    return postgres_server.create()
