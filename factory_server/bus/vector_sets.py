"""Crews' vectors in the vector sets of Redis 8, where the server has them: an index that may be lost at any time.

A crew's index is a set, and a stamp that tells of which revision it is, how many vectors it holds at least and
which build it is. Only who holds the claim writes, in scripts that look at the claim; a set grows, and loses
vectors only as a whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, ResponseError

from factory_server.bus import keys, vector_scripts
from factory_server.bus.asked import COMMAND_MAX_S, asked
from factory_server.core.vector_index import NOTHING, Candidates, IndexClaim
from factory_server.core.vectors import VectorRow

LOOK_MAX_S: Final = 0.25
"""A search waits no longer for candidates."""
CONNECTIONS_MAX: Final = 16
LINKS: Final = 32
"""Of each vector, twice as many in the lowest layer. Of random vectors, the hardest there are, 97 % of the nearest
ten among 10,000 are found with it, and 85 % with half as many; of clustered ones all."""
EFFORT: Final = 400
"""Vectors looked at for a search."""
INDEX_TTL_MS: Final = 3_600_000
"""An index that nobody asked for so long goes."""
HALF_TTL_MS: Final = 60_000
"""As does one that nobody finishes."""
CLAIM_TTL_MS: Final = 10_000
INDEX_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of all crews: the bus is for other things, too."""
SHARE_MAX: Final = 4
"""Nor more than this part of the server's memory."""
OVERHEAD_BYTES: Final = 1_200
"""Of each vector beside its coordinates, which take a byte each."""


class RedisVectorSets:
    """`core.vector_index.VectorIndex` through redis-py."""

    def __init__(self, url: str) -> None:
        self._redis: Any = Redis.from_url(
            url,
            socket_connect_timeout=COMMAND_MAX_S,
            max_connections=CONNECTIONS_MAX,
            retry=Retry(NoBackoff(), 1),
        )
        self._bytes_max = INDEX_BYTES_MAX

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def probe(self) -> bool:
        """See the port: by trying. A server that keeps an append-only file would build every index again when it
        starts, before it serves the crews."""
        async with asked():
            try:
                await self._redis.execute_command("VCARD", keys.VECTOR_INDEXES + ":none")
            except (ResponseError, NoPermissionError):
                return False
            memory = await self._redis.info("memory")
            file = await self._redis.info("persistence")
        if int(file.get("aof_enabled", 0)):
            return False
        share = int(memory.get("maxmemory", 0)) // SHARE_MAX
        self._bytes_max = min(INDEX_BYTES_MAX, share or INDEX_BYTES_MAX)
        return True

    async def candidates(self, crew: str, query: bytes, count: int) -> Candidates | None:
        """See the port."""
        async with asked(LOOK_MAX_S):
            build, revision, vectors = await self._redis.hmget(_stamp(crew), "build", "revision", "vectors")
            if build is None:
                return None
            found, held, still = await self._look(crew, query, count)
        if still != build or held < int(vectors):
            return None
        return Candidates(int(revision), [ident.decode() for ident in found])

    async def _look(self, crew: str, query: bytes, count: int) -> tuple[list[bytes], int, bytes | None]:
        """What is near, then how much there is, then of which build it is: the same as before means that nobody
        has dropped the set meanwhile. No transaction: it would search in the server's one thread."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("VSIM", _set(crew), "FP32", query, "COUNT", count, "EF", max(EFFORT, count))
            pipe.execute_command("VCARD", _set(crew))
            pipe.hget(_stamp(crew), "build")
            pipe.pexpire(_set(crew), INDEX_TTL_MS)
            pipe.pexpire(_stamp(crew), INDEX_TTL_MS)
            found, held, still, *_ = await pipe.execute()
        return found, held, still

    async def claim(self, crew: str, vectors: int, dimension: int) -> IndexClaim | None:
        """See the port."""
        token = secrets.token_hex(8)
        size_bytes = vectors * (dimension + OVERHEAD_BYTES)
        limits = (CLAIM_TTL_MS, size_bytes, self._bytes_max, NOTHING)
        async with asked():
            names = (*_names(crew), keys.VECTOR_INDEXES)
            revision = await self._redis.eval(vector_scripts.CLAIM, 4, *names, crew, token, *limits)
        return None if revision is None else IndexClaim(crew, token, int(revision))

    async def put(self, claim: IndexClaim, rows: Sequence[VectorRow]) -> bool:
        """See the port."""
        flat = [part for row in rows for part in (row.coordinates, row.id)]
        options = (claim.token, CLAIM_TTL_MS, HALF_TTL_MS, LINKS)
        async with asked():
            kept = await self._redis.eval(vector_scripts.PUT, 3, *_names(claim.crew), *options, *flat)
        return bool(kept)

    async def finish(self, claim: IndexClaim, revision: int, vectors: int) -> bool:
        """See the port."""
        told = (claim.token, revision, vectors, INDEX_TTL_MS)
        async with asked():
            return bool(await self._redis.eval(vector_scripts.FINISH, 3, *_names(claim.crew), *told))

    async def abandon(self, claim: IndexClaim) -> None:
        """See the port."""
        async with asked():
            await self._redis.eval(vector_scripts.ABANDON, 3, *_names(claim.crew), claim.token)


def _names(crew: str) -> tuple[str, str, str]:
    return keys.vectors(crew) + "claim", _stamp(crew), _set(crew)


def _stamp(crew: str) -> str:
    return keys.vectors(crew) + "stamp"


def _set(crew: str) -> str:
    return keys.vectors(crew) + "set"
