"""Migrations are applied once, in order, whole or not at all, whoever starts when."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psycopg
import pytest
from support.plans import assemble

from factory_server.store import PostgresStore
from factory_server.store.migrate import Migration, MigrationChangedError, load, migrate


async def ask(url: str, query: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(query.encode())
        return await cursor.fetchall() if cursor.description else []


async def test_factories_that_start_at_once_migrate_once(blank_postgres_url: str) -> None:
    stores = [PostgresStore(blank_postgres_url) for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        for store in stores:
            group.create_task(store.open())
    crew = await assemble(stores[0])
    assert (await stores[1].get_crew(crew.id)).id == crew.id
    for store in stores:
        await store.close()
    rows = await ask(blank_postgres_url, "SELECT version FROM schema_migration ORDER BY 1")
    assert [version for (version,) in rows] == [migration.version for migration in load()]


async def test_a_migration_that_fails_leaves_nothing_and_is_tried_again(blank_postgres_url: str) -> None:
    table = Migration(9001, "table", "CREATE TABLE extra (n integer); INSERT INTO extra VALUES (1)")
    broken = Migration(9002, "more", "INSERT INTO extra VALUES (2); SELECT 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(blank_postgres_url, [*load(), table, broken])
    assert await ask(blank_postgres_url, "SELECT n FROM extra") == [(1,)]
    mended = replace(broken, sql="INSERT INTO extra VALUES (2)")
    assert await migrate(blank_postgres_url, [*load(), table, mended]) == 1
    assert await ask(blank_postgres_url, "SELECT n FROM extra ORDER BY n") == [(1,), (2,)]


async def test_an_edited_migration_is_noticed(postgres_url: str) -> None:
    edited = [replace(migration, sql=migration.sql + " ") for migration in load()]
    with pytest.raises(MigrationChangedError):
        await migrate(postgres_url, edited)


async def test_an_older_factory_opens_a_newer_database(blank_postgres_url: str) -> None:
    await migrate(blank_postgres_url, [*load(), Migration(9001, "later", "CREATE TABLE later ()")])
    store = PostgresStore(blank_postgres_url)
    await store.open()
    assert await store.get_pools() == []
    await store.close()


async def test_an_older_factory_lives_through_a_newer_one_s_migration(
    store: PostgresStore, postgres_url: str
) -> None:
    crew = await assemble(store)

    async def read() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(store.get_crew(crew.id))

    await read()
    await ask(postgres_url, "ALTER TABLE crew ADD COLUMN later integer")
    await read()
    await ask(postgres_url, "ALTER TABLE crew DROP COLUMN later")
    assert (await store.disband(crew.id, None, "a", failed=False, reason="", message="", drain_s=0)).wish_gone


def test_each_version_has_a_number_of_its_own() -> None:
    """Holes are allowed: parts that grow side by side number theirs in tens of their own."""
    versions = [migration.version for migration in load()]
    assert len(versions) == len(set(versions))
