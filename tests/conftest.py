"""Fixtures for every test: a real PostgreSQL, Redis 8 and Docker engines, one a session, one database a test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from support import postgres
from support.engines import plain_engine, remapped_engine
from support.valkey import ValkeyServer, redis8_binary, running_valkey

__all__ = ["plain_engine", "postgres_server", "postgres_url", "remapped_engine"]

settings.register_profile("unhurried", deadline=None)  # how fast this machine is just now proves nothing
settings.load_profile("unhurried")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out among workers, as `make test` asks for."""
    from support.sharing import Sharing

    config.option.loadscopereorder = False
    return Sharing(config, log)


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


@pytest.fixture(scope="session")
def redis8_server() -> Iterator[ValkeyServer]:
    """The session's Redis that has vector sets."""
    binary = redis8_binary()
    if binary is None:
        pytest.skip("there is no Redis 8: scripts/redis8.sh gets one, for x86-64")
    with running_valkey(binary) as server:
        yield server


@pytest.fixture
def redis8(redis8_server: ValkeyServer) -> ValkeyServer:
    """That server, empty."""
    redis8_server.empty()
    return redis8_server
