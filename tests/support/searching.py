"""Searches of vectors over a real store, with an index on a bus's server or without one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

from prometheus_client import CollectorRegistry

from factory_server.bus import RedisVectorSets
from factory_server.core import vectors
from factory_server.services.measures import Measures
from factory_server.services.vector_indexing import VectorIndexing
from factory_server.services.vectors import VectorSpaces
from factory_server.store import PostgresStore
from hyperfactory.v1 import crew_service_pb2 as pb
from support.plans import ready_crew
from support.site import until

INDEX_FROM = 100
"""So that tests index small spaces."""
DIMENSION = 8
BATCH = 500

Rows = dict[str, list[float]]


@dataclass(eq=False)
class Searching:
    """A factory's part that searches. `index` and `indexing` are None where every search compares all."""

    store: PostgresStore
    measures: Measures
    index: RedisVectorSets | None
    indexing: VectorIndexing | None
    spaces: VectorSpaces

    async def crew(self) -> str:
        """A crew that lives."""
        return (await ready_crew(self.store)).id

    async def put(self, crew: str, rows: Rows) -> None:
        """Put vectors, in as many requests as it takes."""
        several = [pb.Vector(id=ident, values=values) for ident, values in rows.items()]
        for i in range(0, len(several), BATCH):
            request = pb.UpsertVectorsRequest(
                request_id=str(uuid4()), crew=crew, vectors=several[i : i + BATCH]
            )
            await self.spaces.upsert(request, "operator/alice")

    async def search(
        self, crew: str, values: Sequence[float], limit: int = 10, *, exact: bool = False
    ) -> pb.SearchVectorsResponse:
        """What is nearest, as a process answers that has nothing in memory."""
        request = pb.SearchVectorsRequest(crew=crew, values=values, limit=limit, exact=exact)
        return await VectorSpaces(self.store, self.measures, self.indexing).search(request)

    async def indexed(self, crew: str) -> None:
        """Wait until the index is as new as the space."""
        assert self.index is not None
        assert self.indexing is not None
        indexing, index = self.indexing, self.index
        await until(lambda: indexing.there, what="the server has vector sets")
        query = vectors.units([vectors.VectorRow("", vectors.packed([1.0] * DIMENSION))])[0].coordinates

        async def fresh() -> bool:
            mark = await self.store.vector_space(crew)
            found = await index.candidates(crew, query, 1)
            if mark is not None and found is not None and found.revision == mark.revision:
                return True
            indexing.want(crew)
            return False

        await until(fresh, what="the index is up")


@asynccontextmanager
async def searching(
    database_url: str, bus_url: str = "", *, index_from: int = INDEX_FROM
) -> AsyncIterator[Searching]:
    """One process's searches; its index is brought up as long as this is open."""
    store = PostgresStore(database_url)
    await store.open()
    measures = Measures(CollectorRegistry())
    index = RedisVectorSets(bus_url) if bus_url else None
    indexing = VectorIndexing(store, index, measures, index_from) if index else None
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(indexing.run()) if indexing else None
            try:
                yield Searching(store, measures, index, indexing, VectorSpaces(store, measures, indexing))
            finally:
                if running is not None:
                    running.cancel()
    finally:
        if index is not None:
            await index.close()
        await store.close()


def some(count: int, seed: int = 1, dimension: int = DIMENSION) -> Rows:
    """Random directions."""
    dice = random.Random(seed)
    return {f"v{i:05}": [dice.gauss(0, 1) for _ in range(dimension)] for i in range(count)}
