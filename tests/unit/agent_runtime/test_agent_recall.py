"""Recall: what is remembered is found by what it is about, exactly, within bounds, and by nothing stale."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime import recall
from agent_runtime.models import Prompt, from_config
from agent_runtime.profile import ChatPiece
from agent_runtime.recall import FEATURES, Recall, features
from wire.errors import Exhausted, Unavailable

NOTES = {
    "deploy": "The rollout of the payment service happens on Tuesdays.",
    "coffee": "Ada takes her coffee black, Bob with milk.",
    "style": {"indent": 4, "quotes": "double"},
    "incident": "Payments failed because the certificate had expired.",
}
GOLDEN = {67: 0.603, 117: -0.2611, 146: 0.2611, 374: 0.2611, 386: -0.2611, 424: 0.603}
TEXTS = {key: json.dumps(value) for key, value in NOTES.items()}


async def here(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


class Embedder:
    """A model that embeds by counting letters; it notes what it was asked."""

    embeds = "letters"

    def __init__(self, dimension: int = 26) -> None:
        self.asked: list[list[str]] = []
        self.dimension = dimension
        self.down = False

    async def answer(self, prompt: Prompt) -> AsyncIterator[ChatPiece]:
        yield ChatPiece("no")

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if self.down:
            raise Unavailable("away")
        self.asked.append(list(texts))
        letters = [chr(ord("a") + i % 26) for i in range(self.dimension)]
        return [[float(text.lower().count(letter)) + 0.001 for letter in letters] for text in texts]


@pytest.mark.parametrize(
    ("query", "key"),
    [
        ("how does Bob like his coffee", "coffee"),
        ("expired certificates", "incident"),  # another form of the word
        ("which quotes do we use", "style"),
        ("when do we deploy", "deploy"),  # the key counts, too
    ],
)
async def test_without_a_model_what_shares_words_is_found(query: str, key: str) -> None:
    hits = await Recall(from_config({}), here).search(TEXTS, query, 4)
    assert hits[0].key == key
    assert hits[0].value == NOTES[key]
    assert hits[0].score > hits[1].score


@settings(deadline=None)
@given(st.text(max_size=200))
def test_features_have_length_one_or_none_and_are_the_same_each_time(text: str) -> None:
    vector = features(text)
    assert len(vector) == FEATURES
    length = math.sqrt(sum(number * number for number in vector))
    assert length == pytest.approx(1.0, abs=1e-5) or not any(vector)
    assert features(text) == vector


def test_features_are_the_same_on_every_machine() -> None:
    found = {i: round(number, 4) for i, number in enumerate(features("a cat")) if number}
    assert found == GOLDEN


async def test_hits_are_exact_ordered_and_bounded() -> None:
    model = Embedder()
    texts = {f"k{i}": json.dumps("ab" * i + "z" * (20 - i)) for i in range(20)}
    hits = await Recall(model, here).search(texts, "zzzz", 5)
    [wanted], embedded = (
        await model.embed(["zzzz"]),
        dict(zip(texts, await model.embed([recall.readable(k, t) for k, t in texts.items()]), strict=True)),
    )
    expected = sorted(texts, key=lambda key: (-cosine(embedded[key], wanted), key))[:5]
    assert [hit.key for hit in hits] == expected
    assert hits[0].score == pytest.approx(cosine(embedded[expected[0]], wanted), abs=1e-5)


async def test_only_what_changed_is_embedded_anew_and_what_is_forgotten_is_not_found() -> None:
    model = Embedder()
    found = Recall(model, here)
    await found.search(TEXTS, "q", 4)
    later = {**TEXTS, "coffee": json.dumps("tea")}
    del later["style"]
    model.asked.clear()
    hits = await found.search(later, "q", 4)
    assert model.asked == [["coffee tea"], ["q"]]
    assert {hit.key for hit in hits} == {"deploy", "coffee", "incident"}


async def test_a_model_that_is_away_is_told_not_papered_over() -> None:
    model = Embedder()
    found = Recall(model, here)
    await found.search(TEXTS, "q", 4)
    model.down = True
    with pytest.raises(Unavailable):
        await found.search(TEXTS, "q", 4)


async def test_vectors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "VECTORS_MAX_BYTES", 100 * 26)
    texts = {f"k{i}": '"x"' for i in range(200)}
    with pytest.raises(Exhausted):
        await Recall(Embedder(), here).search(texts, "q", 1)


async def remembered(model: Embedder) -> Recall:
    found = Recall(model, here)
    await found.search(TEXTS, "q", 4)
    return found


async def restored(model: Embedder, snapshot: bytes) -> Recall:
    found = Recall(model, here)
    found.restore(snapshot)
    model.asked.clear()
    return found


async def test_vectors_come_back_from_hibernation_and_only_what_changed_is_embedded_anew() -> None:
    model = Embedder()
    snapshot = (await remembered(model)).snapshot(10_000)
    expected = await (await remembered(model)).search(TEXTS, "tea", 4)
    again = await restored(model, snapshot)
    assert await again.search(TEXTS, "tea", 4) == expected
    assert model.asked == [["tea"]]
    changed = await restored(model, snapshot)
    await changed.search({**TEXTS, "coffee": json.dumps("tea")}, "q", 4)
    assert model.asked == [["coffee tea"], ["q"]]


async def test_a_snapshot_before_the_first_search_still_has_what_was_kept() -> None:
    model = Embedder()
    snapshot = (await remembered(model)).snapshot(10_000)
    assert (await restored(model, snapshot)).snapshot(10_000) == snapshot


async def test_another_models_vectors_are_made_again() -> None:
    model, other = Embedder(), Embedder()
    other.embeds = "other"
    again = await restored(other, (await remembered(model)).snapshot(10_000))
    await again.search(TEXTS, "q", 4)
    assert sorted(map(len, other.asked)) == [1, 4]


async def test_a_snapshot_has_the_newest_that_fit_and_none_of_what_is_made_here() -> None:
    model = Embedder()
    found = await remembered(model)
    one = next(size for size in range(1000) if found.snapshot(size))
    assert len(found.snapshot(one)) <= one
    again = await restored(model, found.snapshot(one))
    await again.search(TEXTS, "q", 4)
    assert len(model.asked[0]) == 3
    assert not any(text.startswith("incident") for text in model.asked[0])
    lexical = Recall(from_config({}), here)
    await lexical.search(TEXTS, "q", 4)
    assert lexical.snapshot(10_000) == b""


async def test_a_damaged_snapshot_is_refused() -> None:
    snapshot = (await remembered(Embedder())).snapshot(10_000)
    for damaged in (snapshot[:3], snapshot[:-1], snapshot[:4] + b"[" + snapshot[5:], b"\0\0\0\2{}"):
        with pytest.raises(ValueError):
            Recall(Embedder(), here).restore(damaged)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))
