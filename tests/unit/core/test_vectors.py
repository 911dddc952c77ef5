"""Vectors: what may be put, and that what is found is exactly the nearest."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory_server.core import vectors
from factory_server.core.errors import Invalid
from factory_server.core.vectors import SpaceMark, VectorRow
from hyperfactory.v1 import crew_service_pb2

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def vector(ident: str, *values: float, **metadata: object) -> crew_service_pb2.Vector:
    made = crew_service_pb2.Vector(id=ident, values=values)
    made.metadata.update(metadata)
    return made


@pytest.mark.parametrize(
    ("given_", "field", "reason"),
    [
        ([vector("a", 1, math.nan)], "vectors[0].values[1]", "NOT_FINITE"),
        ([vector("a", math.inf)], "vectors[0].values[0]", "NOT_FINITE"),
        ([vector("a", 1, 2), vector("b", 0, -0.0)], "vectors[1].values", "ZERO_VECTOR"),
        ([vector("a", 1), vector("a", 2)], "vectors[1].id", "DUPLICATE"),
        ([vector("a", 1), vector("b", 2, 3)], "vectors[1].values", "DIMENSION_MISMATCH"),
        ([vector("a", 1, text="x" * 17_000)], "vectors[0].metadata", "TOO_LARGE"),
    ],
)
def test_what_is_wrong_is_named(given_: list[crew_service_pb2.Vector], field: str, reason: str) -> None:
    with pytest.raises(Invalid) as refused:
        vectors.rows_of(given_)
    assert [(v.field, v.reason) for v in refused.value.violations] == [(field, reason)]


def test_a_question_without_direction_is_refused() -> None:
    for values in ([0.0, 0.0], [1.0, math.nan]):
        with pytest.raises(Invalid) as refused:
            vectors.wanted(values)
        assert refused.value.violations[0].field.startswith("values")


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=16))
def test_coordinates_come_back_as_they_were(values: list[float]) -> None:
    assert list(vectors.unpacked(vectors.packed(values))) == values


@pytest.mark.parametrize("seed", range(40))
def test_the_nearest_are_those_of_a_plain_calculation(seed: int) -> None:
    dice = random.Random(seed)
    dimension, count, limit = dice.randint(1, 6), dice.randint(1, 30), dice.randint(1, 40)

    def some() -> list[float]:
        # Small whole numbers, so that there are ties; the last is never zero.
        return [float(dice.randint(-4, 4)) for _ in range(dimension - 1)] + [float(dice.choice([-1, 1, 3]))]

    rows = {f"v{i:02}": some() for i in range(count)}
    wanted = some()
    space = vectors.space(
        SpaceMark(dimension, 1), [VectorRow(ident, vectors.packed(v)) for ident, v in rows.items()]
    )
    hits = vectors.nearest(space, vectors.packed(wanted), limit)
    expected = {ident: cosine(v, wanted) for ident, v in rows.items()}
    best = sorted(expected.values(), reverse=True)[:limit]
    assert len({hit.id for hit in hits}) == len(hits) == min(limit, count)
    for hit, score in zip(hits, best, strict=True):
        assert hit.score == pytest.approx(score, abs=1e-5)
        assert hit.score == pytest.approx(expected[hit.id], abs=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_length_does_not_matter(size: float) -> None:
    rows = [VectorRow("near", vectors.packed([size, size])), VectorRow("far", vectors.packed([-size, 0.0]))]
    hits = vectors.nearest(vectors.space(SpaceMark(2, 1), rows), vectors.packed([size, size * 0.9]), 2)
    assert [hit.id for hit in hits] == ["near", "far"]
    assert hits[0].score == pytest.approx(0.99862, abs=1e-4)


def test_ties_are_by_id() -> None:
    rows = [VectorRow(ident, vectors.packed([1.0, 0.0])) for ident in "dbca"]
    hits = vectors.nearest(vectors.space(SpaceMark(2, 1), rows), vectors.packed([1.0, 0.0]), 2)
    assert [hit.id for hit in hits] == ["a", "b"]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))
