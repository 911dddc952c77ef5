"""Keep indexes of large crews' vectors near what the store has, in the background; no search waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from factory_server.core import vectors
from factory_server.core.errors import FactoryError, Unavailable
from factory_server.core.ports import Store
from factory_server.core.vector_index import (
    INDEX_FROM_VECTORS,
    NOTHING,
    Candidates,
    IndexClaim,
    VectorIndex,
)
from factory_server.core.vectors import Changes, VectorRow
from factory_server.services.measures import Measures

log = logging.getLogger("factory.vectors")

WAITING_MAX: Final = 256
PAGE: Final = 200
CHUNK: Final = 8
CHUNK_BYTES: Final = 8 * 1024
"""Sent at once, one vector at least: some milliseconds of the server's one thread."""
BUILD_MAX_S: Final = 600.0
PROBE_S: Final = 30.0
PROBE_AGAIN_S: Final = 5.0
"""After a failure: until then nobody asks."""


class VectorIndexing:
    """Who asks the index, and who brings it up. `run` is a task; without it there is no index."""

    def __init__(
        self, store: Store, index: VectorIndex, measures: Measures, index_from: int = INDEX_FROM_VECTORS
    ) -> None:
        self._store = store
        self._index = index
        self._measures = measures
        self.index_from = index_from
        self._waiting: dict[str, None] = {}
        self._wanted = asyncio.Event()
        self._lost = asyncio.Event()
        self._told: bool | None = None
        self.there = False
        """Whether the server had what it takes when it was asked last, and has not failed since."""

    def want(self, crew: str) -> None:
        """Have the crew's index brought up, unless too many wait."""
        if self.there and len(self._waiting) < WAITING_MAX:
            self._waiting[crew] = None
            self._wanted.set()

    async def candidates(self, crew: str, query: bytes, count: int) -> Candidates | None:
        """What the index says; None where it has nothing to say, for whatever reason."""
        if not self.there:
            return None
        try:
            (unit,) = await asyncio.to_thread(vectors.units, [VectorRow("", query)])
            return await self._index.candidates(crew, unit.coordinates, count)
        except Unavailable as error:
            self._lose(error)
            return None

    async def run(self) -> None:
        """Probe and build until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe(), name="vector index probe")
            group.create_task(self._build(), name="vector index builds")

    # The server

    async def _probe(self) -> None:
        while True:
            failed = await self._probe_once()
            self._lost.clear()
            if failed:
                await asyncio.sleep(PROBE_AGAIN_S)
                continue
            try:
                async with asyncio.timeout(PROBE_S):
                    await self._lost.wait()
                await asyncio.sleep(PROBE_AGAIN_S)
            except TimeoutError:
                continue

    async def _probe_once(self) -> bool:
        """Whether it failed; a server that has no vector sets does not."""
        try:
            there = await self._index.probe()
        except Unavailable as error:
            self._lose(error)
            return True
        if there is not self._told:
            log.info("vector index", extra={"action": "vector_index", "there": there})
            self._told = there
        self._set(there)
        return False

    def _lose(self, error: FactoryError) -> None:
        if self.there:
            log.warning("vector index lost", extra={"action": "vector_index_lost", "error": str(error)})
            self._measures.trouble.labels("vector_index").inc()
            self._told = False
        self._set(there=False)
        self._lost.set()

    def _set(self, there: bool) -> None:
        self.there = there
        self._measures.vector_index.set(there)

    # Indexes

    async def _build(self) -> None:
        while True:
            await self._wanted.wait()
            while self._waiting:
                crew = next(iter(self._waiting))
                del self._waiting[crew]
                await self._build_one(crew)
            self._wanted.clear()

    async def _build_one(self, crew: str) -> None:
        try:
            async with asyncio.timeout(BUILD_MAX_S):
                await self._bring_up(crew)
        except FactoryError as error:
            self._lose(error)
        except TimeoutError:
            log.warning("vector index takes too long", extra={"action": "vector_index_slow", "crew": crew})

    async def _bring_up(self, crew: str) -> None:
        size = await self._store.changed_vectors(crew, (NOTHING, ""), 0)
        if size is None or size.vectors < self.index_from:
            return
        claim = await self._index.claim(crew, size.vectors, size.mark.dimension)
        if claim is None:
            return
        after = (claim.revision + 1, "")
        while True:
            page = await self._store.changed_vectors(crew, after, PAGE)
            if page is None or page.mark.revision < claim.revision:
                # The crew has ended, or the store is one of an earlier day.
                await self._index.abandon(claim)
                return
            if not await self._put(claim, page):
                return
            if len(page.rows) < PAGE:
                await self._index.finish(claim, page.mark.revision, page.vectors)
                return
            after = (page.dated[-1], page.rows[-1].id)

    async def _put(self, claim: IndexClaim, page: Changes) -> bool:
        """Whether the claim still holds."""
        rows = await asyncio.to_thread(vectors.units, page.rows)
        loop = asyncio.get_running_loop()
        for chunk in _chunks(rows):
            started = loop.time()
            if not await self._index.put(claim, chunk):
                return False
            # Half of the server's time is the crews'.
            await asyncio.sleep(loop.time() - started)
        return True


def _chunks(rows: Sequence[VectorRow]) -> Iterator[Sequence[VectorRow]]:
    if rows:
        count = max(1, min(CHUNK, CHUNK_BYTES // len(rows[0].coordinates)))
        yield from (rows[i : i + count] for i in range(0, len(rows), count))
