"""What every store must do about crews' vectors: all or none, one dimension, bounded, gone with the crew."""

from __future__ import annotations

import pytest
from support.plans import advance, ready_crew, request

from factory_server.core import vectors
from factory_server.core.errors import Exhausted, Invalid, NotFound, Refused
from factory_server.core.lifecycle import AgentEvent
from factory_server.core.ports import Store
from factory_server.core.vectors import Changes, SpaceMark, VectorRow


def row(ident: str, *values: float, metadata: bytes = b"") -> VectorRow:
    return VectorRow(ident, vectors.packed(values), metadata)


class VectorsSuite:
    """Spaces."""

    async def test_vectors_read_back_and_are_replaced_by_id(self, store: Store) -> None:
        crew = (await ready_crew(store)).id
        assert await store.vector_space(crew) is None
        assert await store.upsert_vectors(crew, [row("b", 1, 2), row("a", 3, 4)], request()) == 2
        assert await store.upsert_vectors(crew, [row("b", 5, 6, metadata=b"m")], request()) == 1
        mark, found = await store.read_vectors(crew)
        assert mark == await store.vector_space(crew) == SpaceMark(2, 2)
        assert list(found) == [row("a", 3, 4), row("b", 5, 6)]
        assert await store.vector_metadata(crew, ["a", "b", "c"]) == {"a": b"", "b": b"m"}

    async def test_the_first_fix_the_dimension_and_a_mismatch_changes_nothing(self, store: Store) -> None:
        crew = (await ready_crew(store)).id
        await store.upsert_vectors(crew, [row("a", 1, 2)], request())
        with pytest.raises(Invalid) as refused:
            await store.upsert_vectors(crew, [row("b", 1, 2), row("c", 1)], request())
        assert [v.field for v in refused.value.violations] == ["vectors[1].values"]
        assert await store.vector_space(crew) == SpaceMark(2, 1)
        assert len((await store.read_vectors(crew))[1]) == 1

    async def test_a_repeat_has_one_effect(self, store: Store) -> None:
        crew = (await ready_crew(store)).id
        key = request("UpsertVectors")
        assert await store.upsert_vectors(crew, [row("a", 1)], key) == 1
        await store.upsert_vectors(crew, [row("a", 2)], request("UpsertVectors"))
        assert await store.upsert_vectors(crew, [row("a", 1)], key) == 1
        assert list((await store.read_vectors(crew))[1]) == [row("a", 2)]

    async def test_more_than_is_allowed_changes_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import factory_server.store.vectors as module

        crew = (await ready_crew(store)).id
        await store.upsert_vectors(crew, [row("a", 1), row("b", 1)], request())
        monkeypatch.setattr(module, "VECTORS_MAX", 2)
        await store.upsert_vectors(crew, [row("a", 2)], request())
        with pytest.raises(Exhausted) as full:
            await store.upsert_vectors(crew, [row("c", 1)], request())
        assert full.value.quota == "vectors of a crew"
        monkeypatch.setattr(module, "SPACE_BYTES_MAX", 100)
        with pytest.raises(Exhausted):
            await store.upsert_vectors(crew, [row("a", 1, metadata=bytes(100))], request())
        assert list((await store.read_vectors(crew))[1]) == [row("a", 2), row("b", 1)]

    async def test_a_crew_takes_its_vectors_with_it(self, store: Store) -> None:
        crew, other = await ready_crew(store), (await ready_crew(store)).id
        for ident in (crew.id, other):
            await store.upsert_vectors(ident, [row("a", 1)], request())
        gone = await store.disband(crew.id, None, "x", failed=False, reason="Done", message="", drain_s=9)
        with pytest.raises(Refused):
            await store.upsert_vectors(crew.id, [row("b", 1)], request())
        await advance(store, gone.agents, AgentEvent.DRAINED)
        assert await store.read_vectors(crew.id) == (None, [])
        with pytest.raises(Refused):
            await store.upsert_vectors(crew.id, [row("b", 1)], request())
        assert len((await store.read_vectors(other))[1]) == 1

    async def test_a_crew_that_is_unknown_has_none(self, store: Store) -> None:
        with pytest.raises(NotFound):
            await store.upsert_vectors("c-none", [row("a", 1)], request())

    async def test_what_changed_comes_by_pages_oldest_first(self, store: Store) -> None:
        crew = (await ready_crew(store)).id
        assert await store.changed_vectors(crew, (0, ""), 9) is None
        await store.upsert_vectors(crew, [row("b", 1), row("a", 2), row("c", 3)], request())
        await store.upsert_vectors(crew, [row("a", 4), row("d", 5)], request())
        first = await store.changed_vectors(crew, (0, ""), 3)
        assert first is not None
        assert (first.mark, first.vectors) == (SpaceMark(1, 2), 4)
        assert list(zip(first.rows, first.dated, strict=True)) == [
            (row("b", 1), 1),
            (row("c", 3), 1),
            (row("a", 4), 2),
        ]
        rest = await store.changed_vectors(crew, (2, "a"), 3)
        assert rest is not None
        assert list(rest.rows) == [row("d", 5)]
        assert (await store.changed_vectors(crew, (3, ""), 3)) == Changes(SpaceMark(1, 2), 4, [], [])

    async def test_some_vectors_come_with_all_that_changed_since(self, store: Store) -> None:
        crew = (await ready_crew(store)).id
        assert await store.near_vectors(crew, ["a"], 0, 9) is None
        await store.upsert_vectors(crew, [row(ident, 1) for ident in "abcd"], request())
        await store.upsert_vectors(crew, [row("b", 2), row("e", 2)], request())
        found = await store.near_vectors(crew, ["a", "b", "none"], 1, 9)
        assert found is not None
        assert found.mark == SpaceMark(1, 2)
        assert sorted(zip((r.id for r in found.rows), found.dated, strict=True)) == [
            ("a", 1),
            ("b", 2),
            ("e", 2),
        ]
        short = await store.near_vectors(crew, ["a"], 0, 2)
        assert short is not None
        assert len(short.rows) == 2
