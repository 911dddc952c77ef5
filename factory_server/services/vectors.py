"""Put vectors into a crew's space and find the nearest: exactly, and never in the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from factory_server.core import vectors
from factory_server.core.errors import FieldViolation, Invalid
from factory_server.core.vectors import Hit, Space
from factory_server.services.parts import Parts
from factory_server.services.requests import key_of
from hyperfactory.v1 import crew_service_pb2

KEPT_BYTES_MAX = 256 * 1024 * 1024
SEARCHES_MAX = 4
"""At once: each takes a core and a database connection."""


class VectorSpaces:
    """Crews' vectors. Spaces that were searched are kept ready, the last used ones, as long as nobody wrote."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._ready: OrderedDict[str, Space] = OrderedDict()
        self._searching = asyncio.Semaphore(SEARCHES_MAX)

    async def upsert(self, request: crew_service_pb2.UpsertVectorsRequest, actor: str) -> int:
        """Put vectors, all or none; how many. Invalid, NotFound, Refused, Exhausted."""
        rows = await asyncio.to_thread(vectors.rows_of, request.vectors)
        key = await asyncio.to_thread(key_of, actor, "UpsertVectors", request.request_id, request)
        return await self._parts.store.upsert_vectors(request.crew, rows, key)

    async def search(
        self, request: crew_service_pb2.SearchVectorsRequest
    ) -> Sequence[crew_service_pb2.VectorHit]:
        """The nearest, best first. Invalid, NotFound."""
        await self._parts.store.get_crew(request.crew)
        query = vectors.wanted(request.values)
        async with self._searching:
            space = await self._space(request.crew)
            if space is None:
                return []
            if space.mark.dimension != len(request.values):
                text = vectors.differs(space.mark.dimension, len(request.values))
                violation = FieldViolation("values", text, "DIMENSION_MISMATCH")
                raise Invalid(f"cannot search: values {text}", violations=[violation])
            hits = await asyncio.to_thread(vectors.nearest, space, query, request.limit)
        return await self._shown(request.crew, hits)

    async def _space(self, crew: str) -> Space | None:
        mark = await self._parts.store.vector_space(crew)
        if mark is None:
            self._ready.pop(crew, None)
            return None
        ready = self._ready.get(crew)
        if ready is None or ready.mark != mark:
            now, rows = await self._parts.store.read_vectors(crew)
            if now is None or not rows:
                return None
            ready = await asyncio.to_thread(vectors.space, now, rows)
            self._keep(crew, ready)
        self._ready.move_to_end(crew)
        return ready

    def _keep(self, crew: str, space: Space) -> None:
        self._ready[crew] = space
        while sum(kept.size_bytes for kept in self._ready.values()) > KEPT_BYTES_MAX and len(self._ready) > 1:
            self._ready.popitem(last=False)

    async def _shown(self, crew: str, hits: Sequence[Hit]) -> Sequence[crew_service_pb2.VectorHit]:
        metadata = await self._parts.store.vector_metadata(crew, [hit.id for hit in hits])
        shown = []
        for hit in hits:
            vector = crew_service_pb2.Vector(id=hit.id, values=vectors.unpacked(hit.coordinates))
            vector.metadata.ParseFromString(metadata.get(hit.id, b""))
            shown.append(crew_service_pb2.VectorHit(vector=vector, score=hit.score))
        return shown
