"""What an agent offers beside tools: resources that can be read, prompts that can be asked for."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from agent_runtime.tools.registry import Round
from wire.errors import AlreadyExists, NotFound
from wire.mcp.messages import NONE

_VARIABLE = re.compile(r"\{([A-Za-z0-9_]+)\}")
_EXPRESSION = re.compile(r"\{[^{}]*\}")

Complete = Callable[[str], Awaitable[Sequence[str]]]
"""What an argument that begins like this may be."""
Suggest = Callable[[Mapping[str, Any], Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""The `completion` for an argument, as a request of MCP names it, in its context."""


class Read(NamedTuple):
    """The contents of a resource, as MCP writes them, or what its reader is asked first."""

    contents: Sequence[Mapping[str, Any]] = ()
    asks: Mapping[str, Any] = NONE
    state: str = ""


Fetch = Callable[[str, Round], Awaitable[Read]]


class Resource(NamedTuple):
    """Something to read, by a URI, or by a URI template (`test://{id}/data`) whose variables `read` is given.

    It returns text or bytes. A resource of a server has `fetch` in its place, which is given the URI itself.
    """

    uri: str
    name: str
    read: Callable[[Mapping[str, str]], Awaitable[str | bytes]] | None = None
    description: str = ""
    title: str = ""
    mime_type: str = "text/plain"
    completes: Mapping[str, Complete] = NONE
    fetch: Fetch | None = None
    suggest: Suggest | None = None
    shown: Mapping[str, Any] = NONE
    """What lists say of it, where that is more than the above."""
    scope: str = ""
    """`coder`: for those who may write alone."""
    rank: int = 0
    """The place of its server in the profile, from 1; 0 is the agent's own. Of two templates that fit, the one of
    lower rank is meant."""

    @property
    def template(self) -> bool:
        return "{" in self.uri

    def match(self, uri: str) -> Mapping[str, str] | None:
        """The variables with which this resource is `uri`; None where it is another."""
        if not self.template:
            return {} if uri == self.uri else None
        if self.fetch is not None:
            return {} if _fits(_EXPRESSION.split(self.uri), uri) else None
        parts = _VARIABLE.split(self.uri)
        pattern = "".join(
            f"(?P<{part}>[^/?#]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)
        )
        found = re.fullmatch(pattern, uri)
        return found.groupdict() if found else None


def _fits(literals: Sequence[str], uri: str) -> bool:
    """Whether a URI is these literals in order with anything between them. A server knows operators of RFC 6570
    that we need not: it reads the URI itself. One pass, so that no template makes this slow."""
    first, *middle, last = literals
    if len(uri) < len(first) + len(last) or not (uri.startswith(first) and uri.endswith(last)):
        return False
    at, end = len(first), len(uri) - len(last)
    for literal in middle:
        found = uri.find(literal, at, end)
        if found < 0:
            return False
        at = found + len(literal)
    return True


class PromptArgument(NamedTuple):
    """What a prompt can be given."""

    name: str
    description: str = ""
    required: bool = False
    complete: Complete | None = None
    title: str = ""


class Prompted(NamedTuple):
    """A prompt's messages, as MCP writes them, or what its caller is asked first (as a tool's `Outcome`)."""

    messages: Sequence[Mapping[str, Any]] = ()
    description: str = ""
    asks: Mapping[str, Any] = NONE
    state: str = ""


class Prompt(NamedTuple):
    """A prompt that users may choose. One with `suggest` has a server of its own behind it."""

    name: str
    get: Callable[[Mapping[str, str], Round], Awaitable[Prompted]]
    description: str = ""
    title: str = ""
    arguments: Sequence[PromptArgument] = ()
    suggest: Suggest | None = None
    shown: Mapping[str, Any] = NONE
    scope: str = ""


Item = TypeVar("Item")


class _Lent(NamedTuple, Generic[Item]):
    """What a source lends: its rank, its items now, and the keys that it holds against those behind it."""

    rank: int
    items: Sequence[Item]
    keys: frozenset[str]


class Shelf(Generic[Item]):
    """Things of one kind by key, from several sources.

    What is put here is refused where another has put the same key. What is lent gives way to what is put, and to
    what a source of lower rank lends: which of two is offered depends on their ranks and never on who came first.
    """

    def __init__(self, kind: str, key: Callable[[Item], str], changed: Callable[[], None]) -> None:
        self._kind = kind
        self._key = key
        self._changed = changed
        self._sources: dict[str, list[Item]] = {}
        self._lent: dict[str, _Lent[Item]] = {}
        self._items: dict[str, Item] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """By key."""
        return iter(self._items.values())

    def replace(self, source: str, items: Iterable[Item]) -> None:
        """Offer exactly these of a source; `AlreadyExists` for another's key, and then nothing changes."""
        fresh = list(items)
        keys = [self._key(item) for item in (*self._put_by_others(source), *fresh)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise AlreadyExists(f"cannot offer two {self._kind}s '{twice}'", metadata={"name": twice})
        if fresh != self._sources.get(source, []):
            self._sources[source] = fresh
            self._settle()

    def lend(self, source: str, items: Sequence[Item], rank: int) -> None:
        """Offer these of a source as far as nobody before it has their keys; of two with one key the first."""
        lent = _Lent(rank, items, frozenset(map(self._key, items)))
        if lent != self._lent.get(source):
            self._lent[source] = lent
            self._settle()

    def withhold(self, source: str) -> None:
        """Offer nothing of a source for now. It keeps its keys: they must not mean something else meanwhile."""
        lent = self._lent.get(source)
        if lent is not None and lent.items:
            self._lent[source] = lent._replace(items=())
            self._settle()

    def lost(self, source: str) -> list[str]:
        """The keys of what a source lends that are another's."""
        lent = self._lent.get(source)
        ours = {self._key(item): item for item in reversed(lent.items)} if lent is not None else {}
        return sorted(key for key, item in ours.items() if self._items.get(key) is not item)

    def get(self, key: str) -> Item | None:
        return self._items.get(key)

    def require(self, key: str) -> Item:
        found = self._items.get(key)
        if found is None:
            raise NotFound(f"no {self._kind} '{key[:200]}'", resource_type=self._kind, resource_name=key)
        return found

    def _put_by_others(self, source: str = "") -> list[Item]:
        return [item for name, others in self._sources.items() if name != source for item in others]

    def _settle(self) -> None:
        found = {self._key(item): item for item in self._put_by_others()}
        taken = set(found)
        for lent in sorted(self._lent.values(), key=lambda one: one.rank):
            for item in lent.items:
                if (key := self._key(item)) not in taken:
                    found.setdefault(key, item)
            taken |= lent.keys
        self._items = dict(sorted(found.items()))
        self._changed()
