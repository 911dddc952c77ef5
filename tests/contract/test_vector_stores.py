"""Run the suite of vectors over every store there is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from support.plans import ready_crew, request
from vectors_suite import VectorsSuite

from factory_server.core.ports import Store
from factory_server.core.vectors import VectorRow, packed
from factory_server.store import PostgresStore

OLD_UPSERT = """
INSERT INTO vector (crew, id, coordinates, metadata) VALUES (%(crew)s, %(id)s, %(coordinates)s, '')
ON CONFLICT ON CONSTRAINT vector_pkey
  DO UPDATE SET coordinates = EXCLUDED.coordinates, metadata = EXCLUDED.metadata
"""


class TestPostgresVectors(VectorsSuite):
    """The store on a real PostgreSQL."""

    @pytest.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[Store]:
        """An open store on an empty database."""
        opened = PostgresStore(postgres_url)
        await opened.open()
        yield opened
        await opened.close()

    async def test_vectors_of_an_older_release_have_their_revision_too(
        self, store: Store, postgres_url: str
    ) -> None:
        """It writes without a word of it, while a newer factory brings an index up by what changed."""
        crew = (await ready_crew(store)).id
        await store.upsert_vectors(
            crew, [VectorRow("a", packed([1])), VectorRow("b", packed([1]))], request()
        )
        async with await psycopg.AsyncConnection.connect(postgres_url) as old:
            await old.execute("UPDATE vector_space SET revision = revision + 1")
            for ident in "ac":
                await old.execute(OLD_UPSERT, {"crew": crew, "id": ident, "coordinates": packed([2])})
        found = await store.changed_vectors(crew, (2, ""), 9)
        assert found is not None
        assert [(r.id, dated) for r, dated in zip(found.rows, found.dated, strict=True)] == [
            ("a", 2),
            ("c", 2),
        ]
