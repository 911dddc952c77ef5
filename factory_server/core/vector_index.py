"""What finds a crew's nearest vectors without comparing all: a cache beside the store, never the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from factory_server.core.vectors import VectorRow

INDEX_FROM_VECTORS: Final = 1_000
"""Below it every vector is read and compared about as quickly."""
NOTHING: Final = -1
"""The revision of an index that holds nothing yet: rows begin at 0."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Ids that are probably among the nearest, of an index that holds all vectors up to this revision. It may hold
    later ones, too: whoever asks compares all that changed since by itself."""

    revision: int
    ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class IndexClaim:
    """The right to bring a crew's index up; `revision` is where it is now. Lost when it is not used for a
    while, and when the index is dropped."""

    crew: str
    token: str
    revision: int


class VectorIndex(Protocol):
    """Indexes of crews' vectors. Raises Unavailable where it does not answer. All coordinates are unit vectors."""

    async def probe(self) -> bool:
        """Whether the server that answers now can do it."""

    async def candidates(self, crew: str, query: bytes, count: int) -> Candidates | None:
        """So many candidates, best first; None where there is no whole index. Keeps the index from expiring."""

    async def claim(self, crew: str, vectors: int, dimension: int) -> IndexClaim | None:
        """Claim the crew's index, made for so many vectors; None where another one has it, or memory is short."""

    async def put(self, claim: IndexClaim, rows: Sequence[VectorRow]) -> bool:
        """Put a few vectors; whether the claim still holds."""

    async def finish(self, claim: IndexClaim, revision: int, vectors: int) -> bool:
        """Give the claim back: the index holds the vectors of this revision, so many. Whether it does."""

    async def abandon(self, claim: IndexClaim) -> None:
        """Give the claim back, and the index up."""

    async def close(self) -> None:
        """Let go of the server."""
