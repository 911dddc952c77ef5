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
EMPTY = """
DO $$
DECLARE name text;
BEGIN
  PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
  PERFORM set_config('session_replication_role', 'replica', true);
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public'
    AND tablename NOT IN ('agent_transition', 'schema_migration')
  LOOP
    EXECUTE format('DELETE FROM %I', name);
  END LOOP;
END $$
"""
"""Rows go without their foreign keys' order being known."""


class PostgresServer:
    """The session's server; `restart` is for tests that need it to go away."""

    def __init__(self, home: Path) -> None:
        self._runner = asyncio.Runner()
        self._embedded = EmbeddedPostgres(home)
        self._free: list[str] = []
        """Migrated databases that were emptied again: making one takes a third of a second."""

    def start(self) -> None:
        """Start it, and make the migrated database that others are copied from."""
        self._runner.run(self._embedded.start())
        with psycopg.connect(self._embedded.url, autocommit=True) as connection:
            # A test's server may lose what a power cut would lose: making databases is mostly waiting for disks.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("ALTER SYSTEM SET full_page_writes = off")
            connection.execute("SELECT pg_reload_conf()")
        self.create(name=TEMPLATE)
        self._runner.run(_migrate(self.url_of(TEMPLATE)))

    def stop(self) -> None:
        """Stop it and the loop it was started in."""
        self._runner.run(self._embedded.stop())
        self._runner.close()

    def restart(self) -> None:
        """Go away for a moment; to be called from another thread than a loop's."""
        self._runner.run(self._embedded.stop())
        self._runner.run(self._embedded.start())

    def url_of(self, database: str) -> str:
        """The address of a database."""
        return self._embedded.url.replace("/hyperfactory?", f"/{database}?")

    def create(self, template: str = "template0", name: str = "") -> str:
        """Make a database as a copy of another; its address."""
        name = name or f"test_{os.getpid()}_{next(_NUMBERS)}"
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with psycopg.connect(self._embedded.url, autocommit=True) as connection:
            connection.execute(query.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url_of(name)

    def take(self) -> str:
        """A migrated database without rows."""
        return self._free.pop() if self._free else self.create(TEMPLATE)

    def give_back(self, url: str) -> None:
        """Cut off who is left in a database, empty it and keep it for the next test."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(EMPTY)
        self._free.append(url)


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


@contextmanager
def empty_database(server: PostgresServer) -> Iterator[str]:
    """Lend a migrated database without rows; its address."""
    url = server.take()
    try:
        yield url
    finally:
        server.give_back(url)


async def _migrate(url: str) -> None:
    store = PostgresStore(url)
    await store.open()
    await store.close()
