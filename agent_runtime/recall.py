"""Recall by what something is about: vectors of what is remembered, compared exactly with the question's.

Vectors come from the model's endpoint where the profile names an embedding model. Without one they are made here,
by hashing words and parts of words into a fixed number of features: that finds texts which share words with the
question, or forms of them. It is lexical and knows no meaning; the scores of both kinds are cosines.

An endpoint's vectors go into hibernation with the name of the model that made them, so that waking costs no calls;
another model's are made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import operator
import re
import struct
import zlib
from array import array
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from agent_runtime.models import Model
from wire.errors import Exhausted

FEATURES: Final = 512
GRAM_CHARS: Final = 3
GRAM_WEIGHT: Final = 0.35
TEXT_MAX_CHARS: Final = 2048
BATCH_TEXTS: Final = 64
VECTORS_MAX_BYTES: Final = 64 * 1024 * 1024
DIGEST_BYTES: Final = 16
NUMBER_BYTES: Final = 4
_LENGTH: Final = struct.Struct(">I")
_WORD_RE: Final = re.compile(r"\w+")

Vector = array  # of floats, of length 1


class Hit(NamedTuple):
    """Something recalled."""

    key: str
    text: str
    score: float

    @property
    def value(self) -> Any:
        return json.loads(self.text)


class Recall:
    """The vectors of one collection of texts, brought up to date by each search."""

    def __init__(self, model: Model, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._model = model
        self._in_thread = in_thread
        self._known: dict[str, tuple[str, Vector[float]]] = {}
        self._kept: dict[str, tuple[str, Vector[float]]] = {}
        """From before hibernation, by digests of the texts, until a search looks whether they still hold."""
        self._updating = asyncio.Lock()

    async def search(self, texts: Mapping[str, str], query: str, limit: int) -> Sequence[Hit]:
        """The keys whose JSON texts are nearest to the query, best first; ties by key."""
        async with self._updating:
            await self._update(dict(texts))  # as it is now: it may change while vectors are made
            known = dict(self._known)
        [wanted] = await self._embed([query])
        hits: Sequence[Hit] = await self._in_thread(_nearest, known, wanted, limit)
        return hits

    async def _update(self, texts: Mapping[str, str]) -> None:
        for key in self._known.keys() - texts.keys():
            del self._known[key]
        self._take_kept(texts)
        missing = [k for k, text in texts.items() if k not in self._known or self._known[k][0] != text]
        for batch in _batches(missing, BATCH_TEXTS):
            vectors = await self._embed([readable(key, texts[key]) for key in batch])
            for key, vector in zip(batch, vectors, strict=True):
                self._known[key] = (texts[key], vector)
            if sum(len(vector) * vector.itemsize for _, vector in self._known.values()) > VECTORS_MAX_BYTES:
                self._known.clear()
                raise Exhausted("cannot search: the vectors would fill the memory", quota="memory vectors")

    def _take_kept(self, texts: Mapping[str, str]) -> None:
        for key, (digest, vector) in self._kept.items():
            if key in texts and key not in self._known and _digest(texts[key]) == digest:
                self._known[key] = (texts[key], vector)
        self._kept = {}

    def snapshot(self, most_bytes: int) -> bytes:
        """The endpoint's vectors, the newest first, as many as fit; nothing where they are made here."""
        held = self._kept | {key: (_digest(text), vector) for key, (text, vector) in self._known.items()}
        if not held or not self._model.embeds:
            return b""
        dimension = len(next(reversed(held.values()))[1])
        entries, numbers = list[tuple[str, str]](), list[bytes]()
        left_bytes = most_bytes - _LENGTH.size - len(_head(self._model.embeds, dimension, []))
        for key, (digest, vector) in reversed(held.items()):
            left_bytes -= len(json.dumps([key, digest])) + 2 + dimension * NUMBER_BYTES
            if left_bytes < 0:
                break
            if len(vector) == dimension:
                entries.append((key, digest))
                numbers.append(vector.tobytes())
        head = _head(self._model.embeds, dimension, entries)
        return b"".join([_LENGTH.pack(len(head)), head, *numbers]) if entries else b""

    def restore(self, snapshot: bytes) -> None:
        """Take vectors back, unless another model is to make them now. ValueError for what is no snapshot."""
        self._known, self._kept = {}, {}
        if not snapshot:
            return
        try:
            (length,) = _LENGTH.unpack_from(snapshot)
            head = json.loads(snapshot[_LENGTH.size : _LENGTH.size + length])
            size = int(head["dimension"]) * NUMBER_BYTES
            entries = [(str(key), str(digest)) for key, digest in head["entries"]]
        except (struct.error, KeyError, TypeError) as error:
            raise ValueError("the vectors are damaged") from error
        numbers = snapshot[_LENGTH.size + length :]
        if len(numbers) != size * len(entries):
            raise ValueError("the vectors are cut")
        if head["model"] != self._model.embeds:
            return
        for at, (key, digest) in reversed(list(enumerate(entries))):
            self._kept[key] = (digest, array("f", numbers[at * size : (at + 1) * size]))

    async def _embed(self, texts: Sequence[str]) -> Sequence[Vector[float]]:
        if self._model.embeds:
            return [_unit(vector) for vector in await self._model.embed([t or " " for t in texts])]
        vectors: Sequence[Vector[float]] = await self._in_thread(lambda: [features(text) for text in texts])
        return vectors


def _head(model: str, dimension: int, entries: Sequence[tuple[str, str]]) -> bytes:
    return json.dumps({"model": model, "dimension": dimension, "entries": entries}).encode()


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=DIGEST_BYTES).hexdigest()


def readable(key: str, text: str) -> str:
    """What of an entry is compared: its key, and its value without the marks of JSON around a string."""
    value = json.loads(text)
    return f"{key} {value if isinstance(value, str) else text}"[:TEXT_MAX_CHARS]


def features(text: str) -> Vector[float]:
    """A text's words, and their parts, hashed: the same on every machine."""
    counts: dict[str, float] = {}
    for word in _WORD_RE.findall(text.casefold()):
        counts[word] = counts.get(word, 0.0) + 1.0
        framed = f"<{word}>"
        for at in range(len(framed) - GRAM_CHARS + 1):
            gram = "#" + framed[at : at + GRAM_CHARS]
            counts[gram] = counts.get(gram, 0.0) + GRAM_WEIGHT
    vector = [0.0] * FEATURES
    for feature, count in counts.items():
        number = zlib.crc32(feature.encode())
        # The sign lets what falls on one feature by chance cancel out on the whole.
        sign = 1.0 if number & 0x8000_0000 else -1.0
        vector[number % FEATURES] += sign * math.log1p(count)
    return _unit(vector)


def _unit(vector: Iterable[float]) -> Vector[float]:
    numbers = array("f", vector)
    length = math.sqrt(sum(map(operator.mul, numbers, numbers)))
    return array("f", (number / length for number in numbers)) if length else numbers


def _nearest(
    known: Mapping[str, tuple[str, Vector[float]]], wanted: Vector[float], limit: int
) -> Sequence[Hit]:
    """Exact: every vector is compared. One of another length is of another model, and about nothing here."""
    found = [
        Hit(key, text, sum(map(operator.mul, vector, wanted)))
        for key, (text, vector) in known.items()
        if len(vector) == len(wanted)
    ]
    found.sort(key=lambda hit: (-hit.score, hit.key))
    return found[:limit]


def _batches(keys: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    rest = iter(keys)
    while batch := list(islice(rest, size)):
        yield batch
