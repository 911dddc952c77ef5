"""What an agent offers beside tools: resources that can be read, prompts that can be asked for."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from agent_runtime.tools.registry import Round
from wire.errors import AlreadyExists, NotFound
from wire.mcp.messages import NONE

_VARIABLE = re.compile(r"\{([A-Za-z0-9_]+)\}")

Complete = Callable[[str], Awaitable[Sequence[str]]]
"""What an argument that begins like this may be."""


class Resource(NamedTuple):
    """Something to read, by a URI, or by a URI template (`test://{id}/data`) whose variables `read` is given.

    It returns text or bytes.
    """

    uri: str
    name: str
    read: Callable[[Mapping[str, str]], Awaitable[str | bytes]]
    description: str = ""
    title: str = ""
    mime_type: str = "text/plain"
    completes: Mapping[str, Complete] = NONE

    @property
    def template(self) -> bool:
        return "{" in self.uri

    def match(self, uri: str) -> Mapping[str, str] | None:
        """The variables with which this resource is `uri`; None where it is another."""
        if not self.template:
            return {} if uri == self.uri else None
        parts = _VARIABLE.split(self.uri)
        pattern = "".join(
            f"(?P<{part}>[^/?#]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)
        )
        found = re.fullmatch(pattern, uri)
        return found.groupdict() if found else None


class PromptArgument(NamedTuple):
    """What a prompt can be given."""

    name: str
    description: str = ""
    required: bool = False
    complete: Complete | None = None


class Prompted(NamedTuple):
    """A prompt's messages, as MCP writes them, or what its caller is asked first (as a tool's `Outcome`)."""

    messages: Sequence[Mapping[str, Any]] = ()
    description: str = ""
    asks: Mapping[str, Any] = NONE
    state: str = ""


class Prompt(NamedTuple):
    """A prompt that users may choose."""

    name: str
    get: Callable[[Mapping[str, str], Round], Awaitable[Prompted]]
    description: str = ""
    title: str = ""
    arguments: Sequence[PromptArgument] = ()


Item = TypeVar("Item")


class Shelf(Generic[Item]):
    """Things of one kind by key, from several sources."""

    def __init__(self, kind: str, key: Callable[[Item], str], changed: Callable[[], None]) -> None:
        self._kind = kind
        self._key = key
        self._changed = changed
        self._sources: dict[str, list[Item]] = {}
        self._items: dict[str, Item] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """By key."""
        return iter(self._items.values())

    def replace(self, source: str, items: Iterable[Item]) -> None:
        """Offer exactly these of a source; `AlreadyExists` for another's key, and then nothing changes."""
        fresh = list(items)
        kept = [item for name, others in self._sources.items() if name != source for item in others]
        keys = [self._key(item) for item in (*kept, *fresh)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise AlreadyExists(f"cannot offer two {self._kind}s '{twice}'", metadata={"name": twice})
        if fresh == self._sources.get(source, []):
            return
        self._sources[source] = fresh
        self._items = dict(sorted(zip(keys, (*kept, *fresh), strict=True)))
        self._changed()

    def require(self, key: str) -> Item:
        found = self._items.get(key)
        if found is None:
            raise NotFound(f"no {self._kind} '{key[:200]}'", resource_type=self._kind, resource_name=key)
        return found
