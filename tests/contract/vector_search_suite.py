"""What every search of vectors must do, whoever names the candidates: true scores, and never an old answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from support.plans import advance
from support.searching import Searching, some

from factory_server.core.errors import Invalid, NotFound
from factory_server.core.lifecycle import AgentEvent

COUNT = 200
QUESTIONS = some(20, seed=2)
RECALL_MIN = 0.97
"""Measured: 1.0, see docs/talking.md for larger spaces."""


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


class VectorSearchSuite:
    """Searches; `indexes` tells whether an index names the candidates."""

    indexes = False

    async def ready(self, searching: Searching, crew: str) -> None:
        """The index is up, where there is one."""

    async def test_the_nearest_are_found_with_their_true_cosines(self, searching: Searching) -> None:
        crew, rows = await searching.crew(), some(COUNT)
        await searching.put(crew, rows)
        await self.ready(searching, crew)
        found = 0
        for question in QUESTIONS.values():
            answer = await searching.search(crew, question)
            assert answer.approximate is self.indexes
            best = sorted(rows, key=lambda i: -cosine(rows[i], question))[:10]
            found += len({hit.vector.id for hit in answer.hits} & set(best))
            scores = [hit.score for hit in answer.hits]
            assert scores == sorted(scores, reverse=True)
            for hit in answer.hits:
                assert hit.score == pytest.approx(cosine(rows[hit.vector.id], question), abs=1e-6)
        assert found / (10 * len(QUESTIONS)) >= RECALL_MIN

    async def test_whoever_wants_all_compared_gets_exactly_the_nearest(self, searching: Searching) -> None:
        crew, rows = await searching.crew(), some(COUNT)
        await searching.put(crew, rows)
        await self.ready(searching, crew)
        for question in list(QUESTIONS.values())[:3]:
            exact = await searching.search(crew, question, exact=True)
            near = await searching.search(crew, question)
            assert not exact.approximate
            assert [h.vector.id for h in exact.hits] == sorted(
                rows, key=lambda i: -cosine(rows[i], question)
            )[:10]
            scores = {hit.vector.id: hit.score for hit in exact.hits}
            assert {h.score for h in near.hits if h.vector.id in scores} <= set(scores.values())

    async def test_what_was_just_put_is_found_and_what_it_replaced_is_not(self, searching: Searching) -> None:
        crew = await searching.crew()
        await searching.put(crew, some(COUNT))
        await self.ready(searching, crew)
        for i, question in enumerate(list(QUESTIONS.values())[:5]):
            await searching.put(crew, {"v00007": question, f"new{i}": question})
            answer = await searching.search(crew, question, limit=2)
            assert [hit.vector.id for hit in answer.hits] == sorted([f"new{i}", "v00007"])
            assert [hit.score for hit in answer.hits] == [1.0, 1.0]
            assert answer.approximate is self.indexes

    async def test_lengths_at_the_ends_of_single_precision_do_not_matter(self, searching: Searching) -> None:
        crew, rows = await searching.crew(), some(COUNT)
        ends = {"tiny": [1e-38] * 8, "huge": [3e38] * 8}
        await searching.put(crew, rows | ends)
        await self.ready(searching, crew)
        for size in (1e-38, 1.0, 3e38):
            answer = await searching.search(crew, [size] * 8, limit=2)
            assert [(h.vector.id, h.score) for h in answer.hits] == [("huge", 1.0), ("tiny", 1.0)]
            assert answer.approximate is self.indexes

    async def test_a_question_of_another_dimension_is_refused(self, searching: Searching) -> None:
        crew = await searching.crew()
        assert not (await searching.search(crew, [1.0])).hits
        await searching.put(crew, some(COUNT))
        await self.ready(searching, crew)
        with pytest.raises(Invalid):
            await searching.search(crew, [1.0])
        with pytest.raises(NotFound):
            await searching.search("c-none", [1.0])

    async def test_a_crew_that_ended_has_none(self, searching: Searching) -> None:
        crew = await searching.crew()
        await searching.put(crew, some(COUNT))
        await self.ready(searching, crew)
        gone = await searching.store.disband(
            crew, None, "x", failed=False, reason="Done", message="", drain_s=9
        )
        await advance(searching.store, gone.agents, AgentEvent.DRAINED)
        answer = await searching.search(crew, [1.0] * 8)
        assert not answer.hits
        assert not answer.approximate
