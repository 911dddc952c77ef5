"""What an agent offers now, from all its sources, and who is told when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from agent_runtime.offers import Prompt, Resource, Shelf
from agent_runtime.tools.registry import Registry, Tool
from hyperfactory.v1 import types_pb2

# Changes that come in a burst, as when a server starts, are told once. A reader may have to see one in 100 ms.
COALESCE_S: Final = 0.01

Conditions = Callable[[], Sequence[types_pb2.Condition]]
Told = Callable[[], None]
Updated = Callable[[str], None]
Wishes = Callable[[], frozenset[str]]
"""The URIs of which somebody wants to hear."""
Link = Callable[[str], Resource | None]
"""What a URI means that is in no list."""


class Capabilities:
    """Tools, resources and prompts by source, and conditions of what stands behind them."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self.tools = Registry(tools, self.changed)
        self.resources: Shelf[Resource] = Shelf("resource", lambda one: one.uri, self.changed)
        self.prompts: Shelf[Prompt] = Shelf("prompt", lambda one: one.name, self.changed)
        self.revision = 0
        """Rises when what is told differs from before."""
        self._conditions: list[Conditions] = []
        self._told: set[Told] = set()
        self._updated: dict[Updated, Wishes] = {}
        self._wishing: list[Told] = []
        self._links: list[Link] = []
        self._timer: asyncio.TimerHandle | None = None

    def add_conditions(self, source: Conditions) -> None:
        """Ask this, too, how things are."""
        self._conditions.append(source)

    def conditions(self) -> list[types_pb2.Condition]:
        return [condition for source in self._conditions for condition in source()]

    @property
    def listeners(self) -> int:
        """How many are told of changes."""
        return len(self._told)

    def tell(self, told: Told) -> Callable[[], None]:
        """Call this soon after each change; call what is returned to have it stopped."""
        self._told.add(told)
        return lambda: self._told.discard(told)

    def tell_updates(self, updated: Updated, wishes: Wishes) -> Callable[[], None]:
        """Call this with the URI of each resource whose content is another. `wishes` are those that matter."""
        self._updated[updated] = wishes
        self.wishes_changed()

        def stop() -> None:
            self._updated.pop(updated, None)
            self.wishes_changed()

        return stop

    def tell_wishes(self, told: Told) -> None:
        """Call this when somebody wants to hear of other resources than before."""
        self._wishing.append(told)

    def wishes(self) -> frozenset[str]:
        """The resources of whose changes somebody hears now."""
        return frozenset[str]().union(*(wishes() for wishes in self._updated.values()))

    def wishes_changed(self) -> None:
        for told in self._wishing:
            told()

    def add_links(self, link: Link) -> None:
        """Ask this, too, what a URI means."""
        self._links.append(link)

    def find(self, uri: str) -> Resource | None:
        """What a URI means: a listed resource, one that a result pointed to, or the first template that fits."""
        listed = self.resources.get(uri)
        if listed is not None and not listed.template:
            return listed
        for link in self._links:
            if found := link(uri):
                return found
        fitting = (one for one in self.resources if one.template and one.match(uri) is not None)
        return min(fitting, key=lambda one: one.rank, default=None)

    def updated(self, uri: str) -> None:
        """The content of a resource is another."""
        for updated in list(self._updated):
            updated(uri)

    def changed(self) -> None:
        """Something is another: a tool, a resource, a prompt, or a condition."""
        self.revision += 1
        if self._timer is None and self._told:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        for told in list(self._told):
            told()
