"""Keep crews' vectors: one space a crew, bounded, gone with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg.rows import DictRow

from factory_server.core.errors import Exhausted, Refused
from factory_server.core.model import RequestKey
from factory_server.core.vectors import (
    SPACE_BYTES_MAX,
    VECTORS_MAX,
    Changes,
    SpaceMark,
    VectorRow,
    check_dimension,
)
from factory_server.store.crews import ENDED_CREWS
from factory_server.store.locked import lock_crew
from factory_server.store.pool import Part, Transaction
from factory_server.store.requests import claim_request


class Vectors(Part):
    """Vectors by crew and id."""

    async def upsert_vectors(self, crew: str, rows: Sequence[VectorRow], request: RequestKey) -> int:
        """Put vectors, all or none; how many."""

        async def body(transaction: Transaction) -> int:
            locked = await lock_crew(transaction, crew, [])
            earlier = await claim_request(transaction, request, str(len(rows)))
            if earlier is not None:
                return int(earlier)
            if locked.wish_gone or locked.state in ENDED_CREWS:
                raise Refused(f"crew '{crew}' is on its way out", metadata={"state": locked.state})
            space = await transaction.one("vector_space_touch", crew=crew, dimension=rows[0].dimension)
            check_dimension(space["dimension"], rows)
            await transaction.send(
                "vectors_upsert",
                crew=crew,
                revision=space["revision"],
                ids=[row.id for row in rows],
                coordinates=[row.coordinates for row in rows],
                metadata=[row.metadata for row in rows],
            )
            size = await transaction.one("vectors_size", crew=crew)
            _check_size(crew, size["vectors"], size["bytes"])
            return len(rows)

        return await self._db.run(body)

    async def vector_space(self, crew: str) -> SpaceMark | None:
        """Return what the crew's space is now; None where nothing was put."""

        async def body(transaction: Transaction) -> SpaceMark | None:
            row = await transaction.row("vector_space_get", crew=crew)
            return None if row is None else SpaceMark(row["dimension"], row["revision"])

        return await self._db.read(body)

    async def read_vectors(self, crew: str) -> tuple[SpaceMark | None, Sequence[VectorRow]]:
        """Return all vectors of one revision, by id, without their metadata."""

        async def body(transaction: Transaction) -> tuple[SpaceMark | None, Sequence[VectorRow]]:
            rows = await transaction.rows("vectors_read", crew=crew)
            if not rows:
                return None, []
            mark = SpaceMark(rows[0]["dimension"], rows[0]["revision"])
            return mark, [VectorRow(r["id"], bytes(r["coordinates"])) for r in rows if r["id"] is not None]

        return await self._db.read(body)

    async def changed_vectors(self, crew: str, after: tuple[int, str], limit: int) -> Changes | None:
        """Return a page of vectors that changed after (revision, id), oldest first."""

        async def body(transaction: Transaction) -> Changes | None:
            revision, ident = after
            rows = await transaction.rows(
                "vectors_changed", crew=crew, revision=revision, id=ident, limit=limit
            )
            return _changes(rows, rows[0]["vectors"]) if rows else None

        return await self._db.read(body)

    async def near_vectors(self, crew: str, ids: Sequence[str], since: int, limit: int) -> Changes | None:
        """Return the vectors with these ids, and those that changed since the revision."""

        async def body(transaction: Transaction) -> Changes | None:
            rows = await transaction.rows("vectors_near", crew=crew, ids=list(ids), since=since, limit=limit)
            return _changes(rows, 0) if rows else None

        return await self._db.read(body)

    async def vector_metadata(self, crew: str, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the metadata of these vectors, by id."""

        async def body(transaction: Transaction) -> Mapping[str, bytes]:
            rows = await transaction.rows("vectors_metadata", crew=crew, ids=list(ids))
            return {row["id"]: bytes(row["metadata"]) for row in rows}

        return await self._db.read(body)


def _changes(rows: Sequence[DictRow], vectors: int) -> Changes:
    there = [row for row in rows if row["id"] is not None]
    return Changes(
        SpaceMark(rows[0]["dimension"], rows[0]["space_revision"]),
        vectors,
        [VectorRow(row["id"], bytes(row["coordinates"])) for row in there],
        [row["revision"] for row in there],
    )


def _check_size(crew: str, vectors: int, size_bytes: int) -> None:
    if vectors > VECTORS_MAX:
        raise Exhausted(
            f"cannot keep {vectors} vectors for crew '{crew}', at most {VECTORS_MAX}",
            quota="vectors of a crew",
        )
    if size_bytes > SPACE_BYTES_MAX:
        raise Exhausted(
            f"cannot keep {size_bytes} bytes of vectors for crew '{crew}', at most {SPACE_BYTES_MAX}",
            quota="vector bytes of a crew",
        )
