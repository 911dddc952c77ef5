"""Streams that tell of changes: `subscriptions/listen`, and the GET stream of the handshake era."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

from agent_runtime.assumed import AssumedAgent
from agent_runtime.mcp.limits import KEEP_ALIVE_S, STREAMS_MAX, STREAMS_OF_CALLER_MAX, WAITING_MAX
from agent_runtime.mcp.methods import capabilities
from agent_runtime.mcp.reading import Reader
from agent_runtime.mcp.sessions import Session
from wire.errors import Exhausted
from wire.mcp import forms, messages
from wire.mcp.messages import Id, Json
from wire.mcp.revisions import LISTENABLE, PROMPTS_CHANGED, RESOURCE_UPDATED, RESOURCES_CHANGED, TOOLS_CHANGED
from wire.policy import Caller

COMMENT = b":\n\n"
Lists = dict[str, Sequence[Any]]


def offered(agent: AssumedAgent) -> list[str]:
    """What can be listened to here."""
    able = capabilities(agent)
    kinds = ["toolsListChanged", "promptsListChanged", "resourcesListChanged"]
    found = [kind for kind in kinds if kind.removesuffix("ListChanged") in able]
    return [*found, "resourceSubscriptions"] if "resources" in able else found


class Listeners:
    """A bounded number of streams, each for what its caller may see."""

    def __init__(self, agent: AssumedAgent) -> None:
        self._agent = agent
        self._open: Counter[str] = Counter()

    def check(self, caller: Caller) -> None:
        """`Exhausted` where there is no room for one more stream of this caller."""
        if self._open.total() >= STREAMS_MAX:
            raise Exhausted(f"cannot open more than {STREAMS_MAX} streams", quota="streams")
        if self._open[caller.spiffe] >= STREAMS_OF_CALLER_MAX:
            message = f"a caller cannot open more than {STREAMS_OF_CALLER_MAX} streams"
            raise Exhausted(message, quota="streams of a caller")

    async def listen(self, identifier: Id, wanted: Json, caller: Caller) -> AsyncGenerator[bytes, None]:
        """The stream of a `subscriptions/listen`: first what will come, then what comes."""
        kinds = {LISTENABLE[kind] for kind in wanted if kind in LISTENABLE}
        uris = frozenset(wanted.get("resourceSubscriptions", ()))

        def frame(method: str, params: Json) -> Json:
            return forms.subscribed(method, identifier, params)

        yield messages.event(forms.acknowledged(identifier, wanted))
        changes = _Changes(self._agent, caller.scopes, kinds, lambda: uris)
        async for data in self._stream(caller, changes, frame):
            yield data

    async def session(self, session: Session | None, caller: Caller) -> AsyncGenerator[bytes, None]:
        """The GET stream."""
        changes = _Changes(
            self._agent,
            caller.scopes,
            LISTENABLE.values(),
            lambda: frozenset(session.subscriptions) if session is not None else frozenset(),
        )
        yield COMMENT  # so that the client sees the stream open
        async for data in self._stream(caller, changes, messages.notification):
            yield data

    async def _stream(
        self, caller: Caller, changes: _Changes, frame: Callable[[str, Json], Json]
    ) -> AsyncGenerator[bytes, None]:
        self._open[caller.spiffe] += 1
        try:
            with changes:
                while True:
                    try:
                        async with asyncio.timeout(KEEP_ALIVE_S):
                            method, params = await changes.next()
                    except TimeoutError:
                        yield COMMENT
                    else:
                        yield messages.event(frame(method, params))
        finally:
            self._open[caller.spiffe] -= 1
            self._open += Counter()  # nothing is kept of who has none


class _Changes:
    """What became another since the last look, as far as one caller may see it."""

    def __init__(
        self,
        agent: AssumedAgent,
        scopes: frozenset[str],
        kinds: Iterable[str],
        uris: Callable[[], frozenset[str]],
    ) -> None:
        self._agent = agent
        self._scopes = scopes
        self._kinds = frozenset(kinds)
        self._uris = uris
        self._seen = self._look()
        self._waiting: deque[tuple[str, Json]] = deque(maxlen=WAITING_MAX)
        self._news = asyncio.Event()

    def __enter__(self) -> None:
        told = self._agent.offered
        self._stops = [told.tell(self._changed), told.tell_updates(self._updated, self._uris)]
        self._changed()  # what changed between the acknowledgement and now

    def __exit__(self, *_: object) -> None:
        for stop in self._stops:
            stop()

    async def next(self) -> tuple[str, Json]:
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def _look(self) -> Lists:
        reader = Reader(self._agent, self._scopes)
        return {
            TOOLS_CHANGED: self._agent.visible_tools(self._scopes),
            PROMPTS_CHANGED: reader.prompts(),
            RESOURCES_CHANGED: reader.resources(),
        }

    def _changed(self) -> None:
        before, self._seen = self._seen, self._look()
        for kind in self._kinds:
            if before[kind] != self._seen[kind]:
                self._put(kind, {})

    def _updated(self, uri: str) -> None:
        if uri in self._uris() and Reader(self._agent, self._scopes).hears_of(uri):
            self._put(RESOURCE_UPDATED, {"uri": uri})

    def _put(self, method: str, params: Json) -> None:
        if (method, params) not in self._waiting:
            self._waiting.append((method, params))
            self._news.set()
