"""Vectors of a crew: what may be put, and which are nearest, exactly.

numpy is imported where it is used: most factories never search.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from factory_server.core.errors import FieldViolation, Invalid
from factory_server.core.model import RequestKey
from hyperfactory.v1 import crew_service_pb2

if TYPE_CHECKING:
    import numpy as np

VECTORS_MAX: Final = 10_000
"""Of one crew."""
SPACE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Ids, coordinates and metadata of one crew."""
SEARCH_DEFAULT: Final = 10
"""Hits, where the caller does not say how many."""
METADATA_BYTES_MAX: Final = 16 * 1024
FLOAT_BYTES: Final = 4
SLACK: Final = 1e-5
"""More than a cosine in single precision can be wrong by."""
DIGITS: Final = 12
"""Cosines that are equal so far tie."""


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A vector as it is kept: float32, little endian; the metadata is a serialised Struct."""

    id: str
    coordinates: bytes
    metadata: bytes = b""

    @property
    def dimension(self) -> int:
        """How many coordinates."""
        return len(self.coordinates) // FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class SpaceMark:
    """A crew's space at one revision."""

    dimension: int
    revision: int


@dataclass(frozen=True, slots=True)
class Space:
    """A crew's vectors at one revision; row i of `matrix` belongs to `ids[i]` and has length 1."""

    mark: SpaceMark
    ids: Sequence[str]
    coordinates: Sequence[bytes]
    matrix: np.ndarray

    @property
    def size_bytes(self) -> int:
        """What it costs to keep."""
        return int(self.matrix.nbytes) + sum(len(c) for c in self.coordinates)


@dataclass(frozen=True, slots=True)
class Changes:
    """Some vectors of one moment, the space as it was then, and how many vectors it had. `dated[i]` is the
    revision in which `rows[i]` was put."""

    mark: SpaceMark
    vectors: int
    rows: Sequence[VectorRow]
    dated: Sequence[int]


@dataclass(frozen=True, slots=True)
class Hit:
    """A vector found, with its cosine."""

    id: str
    coordinates: bytes
    score: float


class VectorStore(Protocol):
    """Crews' vectors: one space a crew, gone with it."""

    async def upsert_vectors(self, crew: str, rows: Sequence[VectorRow], request: RequestKey) -> int:
        """Put vectors, all or none; how many. The first fix the dimension. Invalid, NotFound, Refused, Exhausted.
        Idempotent."""

    async def vector_space(self, crew: str) -> SpaceMark | None:
        """What the crew's space is now; None where nothing was put, or the crew has ended."""

    async def read_vectors(self, crew: str) -> tuple[SpaceMark | None, Sequence[VectorRow]]:
        """All vectors of one revision, by id, without their metadata."""

    async def changed_vectors(self, crew: str, after: tuple[int, str], limit: int) -> Changes | None:
        """A page of vectors that changed after (revision, id), oldest first, without their metadata; all of them
        where it is not full. None where there is no space."""

    async def near_vectors(self, crew: str, ids: Sequence[str], since: int, limit: int) -> Changes | None:
        """The vectors with these ids, and at most so many of those that changed since the revision, of one moment,
        without their metadata; they are not counted. None where there is no space."""

    async def vector_metadata(self, crew: str, ids: Sequence[str]) -> Mapping[str, bytes]:
        """The metadata of these vectors, by id."""


def rows_of(vectors: Sequence[crew_service_pb2.Vector]) -> Sequence[VectorRow]:
    """Vectors of a request as they are kept. Invalid, with each field that is wrong."""
    wrong = list(_wrong(vectors))
    if wrong:
        raise Invalid(f"cannot put vectors: {wrong[0].field} {wrong[0].description}", violations=wrong)
    return [
        VectorRow(v.id, packed(v.values), v.metadata.SerializeToString(deterministic=True)) for v in vectors
    ]


def packed(values: Sequence[float]) -> bytes:
    """Coordinates as they are kept."""
    return struct.pack(f"<{len(values)}f", *values)


def unpacked(coordinates: bytes) -> Sequence[float]:
    """Coordinates as the contract has them."""
    return struct.unpack(f"<{len(coordinates) // FLOAT_BYTES}f", coordinates)


def wanted(values: Sequence[float]) -> bytes:
    """What to look near to. Invalid."""
    wrong = list(_wrong_values("values", values))
    if wrong:
        raise Invalid(f"cannot search: {wrong[0].field} {wrong[0].description}", violations=wrong)
    return packed(values)


def check_dimension(dimension: int, rows: Sequence[VectorRow]) -> None:
    """Refuse vectors of another space. Invalid."""
    wrong = [
        FieldViolation(f"vectors[{i}].values", differs(dimension, row.dimension), "DIMENSION_MISMATCH")
        for i, row in enumerate(rows)
        if row.dimension != dimension
    ]
    if wrong:
        raise Invalid(f"cannot put vectors: {wrong[0].field} {wrong[0].description}", violations=wrong[:20])


def differs(dimension: int, given: int) -> str:
    """What is wrong with so many coordinates."""
    return f"has {given} coordinates, and the crew's vectors have {dimension}"


def _wrong(vectors: Sequence[crew_service_pb2.Vector]) -> Iterator[FieldViolation]:
    seen: dict[str, int] = {}
    for i, vector in enumerate(vectors):
        yield from _wrong_values(f"vectors[{i}].values", vector.values)
        first = seen.setdefault(vector.id, i)
        if first != i:
            yield FieldViolation(f"vectors[{i}].id", f"is that of vectors[{first}], too", "DUPLICATE")
        if len(vector.values) != len(vectors[0].values):
            differing = differs(len(vectors[0].values), len(vector.values))
            yield FieldViolation(f"vectors[{i}].values", differing, "DIMENSION_MISMATCH")
        if (size := vector.metadata.ByteSize()) > METADATA_BYTES_MAX:
            text = f"has {size} bytes, at most {METADATA_BYTES_MAX} are allowed"
            yield FieldViolation(f"vectors[{i}].metadata", text, "TOO_LARGE")


def _wrong_values(path: str, values: Sequence[float]) -> Iterator[FieldViolation]:
    for i, value in enumerate(values):
        if not math.isfinite(value):
            yield FieldViolation(f"{path}[{i}]", "must be a finite number", "NOT_FINITE")
            return
    if not any(values):
        yield FieldViolation(path, "must not be all zero: it has no direction", "ZERO_VECTOR")


def space(mark: SpaceMark, rows: Sequence[VectorRow]) -> Space:
    """Make rows ready to be searched; takes a moment, so not in the event loop."""
    import numpy as np

    matrix = _doubles(row.coordinates for row in rows)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return Space(mark, [row.id for row in rows], [row.coordinates for row in rows], matrix.astype(np.float32))


def units(rows: Sequence[VectorRow]) -> Sequence[VectorRow]:
    """The same directions with length 1, without metadata, for those who calculate in single precision."""
    import numpy as np

    if not rows:
        return []
    matrix = _doubles(row.coordinates for row in rows)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return [VectorRow(r.id, unit.tobytes()) for r, unit in zip(rows, matrix.astype("<f4"), strict=True)]


def nearest(found: Space, query: bytes, limit: int) -> Sequence[Hit]:
    """The nearest by cosine, best first, ties by id; every vector is compared."""
    import numpy as np

    vector = np.frombuffer(query, dtype="<f4").astype(np.float64)
    vector /= np.linalg.norm(vector)
    scores = found.matrix @ vector.astype(np.float32)
    count = min(limit, len(found.ids))
    # Those that may tie with the last one must all be looked at: which of them is shown is not left to chance.
    least = np.partition(scores, len(scores) - count)[len(scores) - count] - SLACK if count else 0.0
    near = map(int, np.flatnonzero(scores >= least))
    return ranked([VectorRow(found.ids[i], found.coordinates[i]) for i in near], query, limit)


def ranked(rows: Sequence[VectorRow], query: bytes, limit: int) -> Sequence[Hit]:
    """The nearest of these by cosine in double precision, best first, ties by id."""
    import numpy as np

    if not rows:
        return []
    matrix, vector = _doubles(row.coordinates for row in rows), _doubles([query])[0]
    scores = matrix @ vector / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(vector))
    scores = np.clip(np.round(scores, DIGITS), -1.0, 1.0)
    best = sorted(range(len(rows)), key=lambda i: (-scores[i], rows[i].id))[:limit]
    return [Hit(rows[i].id, rows[i].coordinates, float(scores[i])) for i in best]


def _doubles(coordinates: Iterable[bytes]) -> np.ndarray:
    """In double precision: the square of a large float32 is none any more."""
    import numpy as np

    several = list(coordinates)
    return np.frombuffer(b"".join(several), dtype="<f4").reshape(len(several), -1).astype(np.float64)
