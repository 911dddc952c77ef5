"""One real PostgreSQL for the whole test session, and a database of its own for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from embedded.postgres import EmbeddedPostgres
from factory_server.store import PostgresStore

_NUMBERS = itertools.count(1)
TEMPLATE = "template_store"


class PostgresServer:
    """The session's server; `restart` is for tests that need it to go away."""

    def __init__(self, home: Path) -> None:
        self._runner = asyncio.Runner()
        self._embedded = EmbeddedPostgres(home)

    def start(self) -> None:
        """Start it, and make the migrated database that others are copied from."""
        self._runner.run(self._embedded.start())
        self.create(TEMPLATE)
        self._runner.run(_migrate(self.url_of(TEMPLATE)))

    def stop(self) -> None:
        """Stop it and the loop it was started in."""
        self._runner.run(self._embedded.stop())
        self._runner.close()

    def url_of(self, database: str) -> str:
        """The address of a database."""
        return self._embedded.url.replace("/hyperfactory?", f"/{database}?")

    def create(self, database: str, template: str = "template0") -> None:
        """Make a database as a copy of another."""
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with psycopg.connect(self._embedded.url, autocommit=True) as connection:
            connection.execute(query.format(sql.Identifier(database), sql.Identifier(template)))


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Run a server in a short folder and leave nothing of it."""
    home = Path(tempfile.mkdtemp(prefix="hfpg"))
    home.chmod(0o711)
    server = PostgresServer(home)
    try:
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home)


def database(server: PostgresServer, template: str) -> str:
    """Make a database for one test; its address. It goes with the server: dropping one takes a checkpoint."""
    name = f"test_{os.getpid()}_{next(_NUMBERS)}"
    server.create(name, template)
    return server.url_of(name)


async def _migrate(url: str) -> None:
    store = PostgresStore(url)
    await store.open()
    await store.close()
