"""Put vectors into a crew's space and find the nearest, never in the event loop; where an index knows which may be
near, only those are read."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from factory_server.core import vectors
from factory_server.core.errors import FieldViolation, Invalid
from factory_server.core.ports import Store
from factory_server.core.vectors import Hit, Space, SpaceMark
from factory_server.services.measures import Measures
from factory_server.services.requests import key_of
from factory_server.services.vector_indexing import VectorIndexing
from hyperfactory.v1 import crew_service_pb2

KEPT_BYTES_MAX = 256 * 1024 * 1024
SEARCHES_MAX = 4
"""At once: each takes a core and a database connection."""
SPARE = 10
"""Candidates beyond twice the limit, and those beyond the limit that must be left of them."""
CHANGED_MAX = 500
"""Vectors newer than the index that are compared beside its candidates."""


class VectorSpaces:
    """Crews' vectors. Spaces that were searched are kept ready, the last used ones, as long as nobody wrote."""

    def __init__(self, store: Store, measures: Measures, indexing: VectorIndexing | None = None) -> None:
        self._store = store
        self._measures = measures
        self._indexing = indexing
        self._ready: OrderedDict[str, Space] = OrderedDict()
        self._searching = asyncio.Semaphore(SEARCHES_MAX)

    async def upsert(self, request: crew_service_pb2.UpsertVectorsRequest, actor: str) -> int:
        """Put vectors, all or none; how many. Invalid, NotFound, Refused, Exhausted."""
        rows = await asyncio.to_thread(vectors.rows_of, request.vectors)
        key = await asyncio.to_thread(key_of, actor, "UpsertVectors", request.request_id, request)
        return await self._store.upsert_vectors(request.crew, rows, key)

    async def search(
        self, request: crew_service_pb2.SearchVectorsRequest
    ) -> crew_service_pb2.SearchVectorsResponse:
        """The nearest, best first. Invalid, NotFound."""
        await self._store.get_crew(request.crew)
        query, limit = vectors.wanted(request.values), request.limit or vectors.SEARCH_DEFAULT
        async with self._searching:
            mark = await self._store.vector_space(request.crew)
            _check(mark, len(request.values))
            ready = self._current(request.crew, mark)
            # What is in memory is compared as quickly as an index answers.
            near = None
            if mark is not None and ready is None and not request.exact:
                near = await self._near(request.crew, query, limit)
            hits: Sequence[Hit] = near or ()
            if near is None and mark is not None:
                space = ready or await self._read(request.crew)
                hits = await asyncio.to_thread(vectors.nearest, space, query, limit) if space else ()
        self._measures.vector_searches.labels("exact" if near is None else "index").inc()
        shown = await self._shown(request.crew, hits)
        return crew_service_pb2.SearchVectorsResponse(hits=shown, approximate=near is not None)

    async def _near(self, crew: str, query: bytes, limit: int) -> Sequence[Hit] | None:
        """The nearest of the index's candidates and all that changed since, as they are in the store; None where
        that may not be enough."""
        indexing = self._indexing
        if indexing is None:
            return None
        found = await indexing.candidates(crew, query, 2 * limit + SPARE)
        if found is None:
            return None
        now = await self._store.near_vectors(crew, found.ids, found.revision, CHANGED_MAX + 1)
        if now is None:
            return None
        if now.mark.revision != found.revision:
            indexing.want(crew)
        changed = sum(revision > found.revision for revision in now.dated)
        # Those that changed may have taken others' places among the candidates.
        if changed > CHANGED_MAX or len(now.rows) - changed < limit + SPARE:
            return None
        return await asyncio.to_thread(vectors.ranked, now.rows, query, limit)

    def _current(self, crew: str, mark: SpaceMark | None) -> Space | None:
        """The space, if it is ready as it is now."""
        ready = self._ready.get(crew)
        if ready is None or ready.mark != mark:
            self._ready.pop(crew, None)
            return None
        self._ready.move_to_end(crew)
        return ready

    async def _read(self, crew: str) -> Space | None:
        mark, rows = await self._store.read_vectors(crew)
        if mark is None or not rows:
            return None
        if self._indexing is not None and len(rows) >= self._indexing.index_from:
            self._indexing.want(crew)
        space = await asyncio.to_thread(vectors.space, mark, rows)
        self._ready[crew] = space
        while sum(kept.size_bytes for kept in self._ready.values()) > KEPT_BYTES_MAX and len(self._ready) > 1:
            self._ready.popitem(last=False)
        return space

    async def _shown(self, crew: str, hits: Sequence[Hit]) -> Sequence[crew_service_pb2.VectorHit]:
        metadata = await self._store.vector_metadata(crew, [hit.id for hit in hits])
        shown = []
        for hit in hits:
            vector = crew_service_pb2.Vector(id=hit.id, values=vectors.unpacked(hit.coordinates))
            vector.metadata.ParseFromString(metadata.get(hit.id, b""))
            shown.append(crew_service_pb2.VectorHit(vector=vector, score=hit.score))
        return shown


def _check(mark: SpaceMark | None, given: int) -> None:
    """Refuse a question of another dimension. Invalid."""
    if mark is not None and mark.dimension != given:
        text = vectors.differs(mark.dimension, given)
        violation = FieldViolation("values", text, "DIMENSION_MISMATCH")
        raise Invalid(f"cannot search: values {text}", violations=[violation])
