"""Bring the schema up to date at start, safely when several factories start at once.

Each migration is one transaction under one advisory lock; what was applied is remembered with a checksum, so
that an edited file is noticed instead of trusted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from factory_server.core.lifecycle import TABLE
from factory_server.store.named import QUERIES
from factory_server.store.pool import connection_options

_FILE_RE = re.compile(r"(\d{4})_(\w+)\.sql")


class MigrationChangedError(Exception):
    """A migration that was applied is not the one of this program."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of migrations/."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What the applied migration is compared by."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load() -> Sequence[Migration]:
    """All migrations of this program, in order."""
    files = resources.files(__package__).joinpath("migrations").iterdir()
    found = [(_FILE_RE.fullmatch(file.name), file) for file in files]
    known = [Migration(int(m[1]), m[2], file.read_text(encoding="utf-8")) for m, file in found if m]
    return sorted(known, key=lambda migration: migration.version)


async def migrate(url: str, migrations: Sequence[Migration]) -> int:
    """Apply what is missing, then make the transition table equal to the core's; how many were applied.

    Versions that this program does not know are left alone: a newer factory may run beside an older one.
    """
    async with await AsyncConnection.connect(url, **connection_options()) as connection:
        applied = 0
        for migration in migrations:
            async with connection.transaction():
                applied += await _apply(connection, migration)
        async with connection.transaction():
            await connection.execute(QUERIES["migration_lock"])
            await _write_transitions(connection)
        return applied


async def _apply(connection: AsyncConnection[DictRow], migration: Migration) -> bool:
    await connection.execute(QUERIES["migration_patience"])
    await connection.execute(QUERIES["migration_lock"])
    await connection.execute(QUERIES["migration_table"])
    rows = await (await connection.execute(QUERIES["migrations_applied"])).fetchall()
    known = {row["version"]: row["checksum"] for row in rows}
    if migration.version in known:
        if known[migration.version] != migration.checksum:
            raise MigrationChangedError(
                f"cannot open the store: migration {migration.version:04} was applied with another text"
            )
        return False
    await connection.execute(migration.sql.encode(), prepare=False)
    done = {"version": migration.version, "name": migration.name, "checksum": migration.checksum}
    await connection.execute(QUERIES["migration_done"], done)
    return True


async def _write_transitions(connection: AsyncConnection[DictRow]) -> None:
    params = {
        "sources": [str(row.source or "") for row in TABLE],
        "events": [str(row.event) for row in TABLE],
        "targets": [str(row.target) for row in TABLE],
    }
    await connection.execute(QUERIES["transitions_drop_others"], params)
    await connection.execute(QUERIES["transitions_add"], params)
