"""The conversation with a server in its revision of MCP: the handshake, or requests that carry everything."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from agent_runtime import __version__
from agent_runtime.servers.asking import CAPABILITIES, NOBODY, ROOTS, Desk, Ears
from agent_runtime.servers.condition import Down
from agent_runtime.servers.limits import (
    SERVER_PAGES_MAX,
    SERVER_PROMPTS_MAX,
    SERVER_RESOURCES_MAX,
    SERVER_TEMPLATES_MAX,
    SERVER_TOOLS_MAX,
)
from agent_runtime.servers.peer import Answered, Peer, Step
from agent_runtime.tools.registry import Round
from wire.mcp import revisions

# As a client of one machine's programs we speak with older ones, too, than we serve ourselves.
HANDSHAKE: Final = (*revisions.HANDSHAKE, "2025-03-26", "2024-11-05")
_US: Final = {"name": "hyper-agent-factory", "version": __version__}
ROUNDS_MAX: Final = 8  # of questions that we answer ourselves

# What can be listed: under which capability, by which method, in which member, how many at most.
TOOLS, RESOURCES, TEMPLATES, PROMPTS = "tools", "resources", "resourceTemplates", "prompts"
_LISTS: Final[Mapping[str, tuple[str, str, int]]] = {
    TOOLS: ("tools", "tools/list", SERVER_TOOLS_MAX),
    RESOURCES: ("resources", "resources/list", SERVER_RESOURCES_MAX),
    TEMPLATES: ("resources", "resources/templates/list", SERVER_TEMPLATES_MAX),
    PROMPTS: ("prompts", "prompts/list", SERVER_PROMPTS_MAX),
}

Object = Mapping[str, Any]


class Endless(Down):
    """A list with more than we keep, or without an end; `found` is its beginning."""

    def __init__(self, kind: str, most: int, found: list[dict[str, Any]]) -> None:
        super().__init__("TooManyTools", f"the server's list of {kind} has no end within {most} {kind}")
        self.found = found[:most]


class Session:
    """A server that has answered. `stateless` ones have to be asked for notices of change."""

    def __init__(self, peer: Peer, desk: Desk, revision: str, answer: Object, meta: Object) -> None:
        able = answer.get("capabilities")
        self._peer = peer
        self._desk = desk
        self._meta = meta
        self._able: Object = able if isinstance(able, Mapping) else {}
        self.revision = revision
        self.stateless = revision == revisions.STATELESS

    def can(self, capability: str, part: str = "") -> bool:
        """Whether the server has declared a capability, and a part of it."""
        found = self._able.get(capability)
        return isinstance(found, Mapping) and (not part or bool(found.get(part)))

    def lists(self, kind: str) -> bool:
        """Whether it is worth asking. Many list tools without having declared that they do."""
        return self.can(_LISTS[kind][0]) or (kind == TOOLS and not self._able)

    async def list(self, kind: str) -> list[dict[str, Any]]:
        """Every item, page by page; `Endless` where there are too many."""
        if not self.lists(kind):
            return []
        _, method, most = _LISTS[kind]
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(SERVER_PAGES_MAX):
            page = await self._request(method, {} if cursor is None else {"cursor": cursor})
            found += [item for item in page.get(kind) or () if isinstance(item, dict)]
            following = page.get("nextCursor")
            if len(found) > most:
                break
            if not following or not isinstance(following, str):
                return found
            if following == cursor:
                break
            cursor = following
        raise Endless(kind, most, found)

    async def call_tool(self, name: str, arguments: Object, round: Round, ears: Ears) -> dict[str, Any]:
        """Call a tool; what is asked first is in the result."""
        return await self._carry("tools/call", {"name": name, "arguments": dict(arguments)}, round, ears)

    async def get_prompt(self, name: str, arguments: Object, round: Round) -> dict[str, Any]:
        return await self._carry("prompts/get", {"name": name, "arguments": dict(arguments)}, round)

    async def read(self, uri: str, round: Round) -> dict[str, Any]:
        return await self._carry("resources/read", {"uri": uri}, round)

    async def complete(self, reference: Object, argument: Object, context: Object) -> dict[str, Any]:
        params: dict[str, Any] = {"ref": dict(reference), "argument": dict(argument)}
        if context:
            params["context"] = dict(context)
        return await self._request("completion/complete", params)

    async def subscribe(self, uri: str, *, wanted: bool) -> None:
        """Be told, or be told no more, when a resource's content is another (handshake era)."""
        await self._request("resources/subscribe" if wanted else "resources/unsubscribe", {"uri": uri})

    async def listen(self, uris: Iterable[str]) -> None:
        """Ask for notices of change (stateless era); returns when the server will send none any more."""
        wanted: dict[str, Any] = dict.fromkeys(revisions.LISTENABLE, True)
        if uris := sorted(uris):
            wanted["resourceSubscriptions"] = uris
        await self._request("subscriptions/listen", {"notifications": wanted})

    async def _carry(
        self, method: str, params: dict[str, Any], round: Round, ears: Ears = NOBODY
    ) -> dict[str, Any]:
        """A request in whose midst the server may ask."""

        async def start(step: Step) -> dict[str, Any]:
            return await self._request(method, params, on_progress=step)

        if self.stateless:
            return await self._rounds(method, params, round, ears)
        return await self._desk.carry(round, ears, start)

    async def _rounds(self, method: str, params: dict[str, Any], round: Round, ears: Ears) -> dict[str, Any]:
        """Ask a stateless server until it wants something that only the caller can answer. Roots are ours."""
        state, ours = _opened(round.state)
        answers = {**round.answers, **{key: await self._desk.answer(ROOTS, {}) for key in ours}}
        meta = {revisions.META_CLIENT_CAPABILITIES: {**round.capabilities, "roots": {}}}
        for _ in range(ROUNDS_MAX):
            more: dict[str, Any] = {"inputResponses": answers} if answers else {}
            if state:
                more["requestState"] = state
            result = await self._request(method, params | more, meta, on_progress=ears.step)
            asks = result.get("inputRequests")
            if result.get("resultType") != "input_required" or not isinstance(asks, dict):
                return result
            state = str(result.get("requestState") or "")
            ours = [key for key, ask in asks.items() if isinstance(ask, dict) and ask.get("method") == ROOTS]
            theirs = {key: ask for key, ask in asks.items() if key not in ours}
            if theirs or not ours:
                return {**result, "inputRequests": theirs, "requestState": _closed(state, ours)}
            answers = {key: await self._desk.answer(ROOTS, {}) for key in ours}
        raise Answered(0, f"the server asks for roots more than {ROUNDS_MAX} times")

    async def _request(
        self,
        method: str,
        params: Object,
        meta: Object | None = None,
        *,
        on_progress: Callable[[Object], Awaitable[None]] | None = None,
    ) -> dict[str, Any]:
        if self._meta:
            params = {**params, "_meta": {**self._meta, **(meta or {})}}
        return _object(await self._peer.request(method, params, on_progress=on_progress), method)


def _closed(state: str, ours: list[str]) -> str:
    """The server's state, and which questions beside those of the caller's we are to answer."""
    return json.dumps([state, ours]) if state or ours else ""


def _opened(state: str) -> tuple[str, list[str]]:
    """What `_closed` has made; it comes back sealed, or not at all."""
    if not state:
        return "", []
    theirs, ours = json.loads(state)
    return theirs, ours


async def open_session(peer: Peer, desk: Desk) -> Session:
    """Agree on a revision. The handshake comes first: servers of today answer it, and those that do not know it
    any more must say so, while many older ones fall silent at a method that they do not know."""
    try:
        return await _shake_hands(peer, desk)
    except Answered as refusal:
        try:
            return await _discover(peer, desk)
        except Answered:
            text = f"the server refuses the handshake: {refusal.message}"
            raise Down("HandshakeFailed", text) from refusal


async def _shake_hands(peer: Peer, desk: Desk) -> Session:
    wish = {"protocolVersion": HANDSHAKE[0], "capabilities": CAPABILITIES, "clientInfo": _US}
    answer = _object(await peer.request("initialize", wish, cancellable=False), "initialize")
    revision = answer.get("protocolVersion")
    if revision not in HANDSHAKE:
        raise Down("VersionUnsupported", f"the server speaks revision '{str(revision)[:32]}' of MCP")
    peer.notify("notifications/initialized")
    return Session(peer, desk, str(revision), answer, {})


async def _discover(peer: Peer, desk: Desk) -> Session:
    meta = {
        revisions.META_VERSION: revisions.STATELESS,
        revisions.META_CLIENT_CAPABILITIES: {},
        revisions.META_CLIENT_INFO: _US,
    }
    answer = _object(await peer.request("server/discover", {"_meta": meta}), "server/discover")
    spoken = answer.get("supportedVersions")
    if not isinstance(spoken, list) or revisions.STATELESS not in spoken:
        raise Down("VersionUnsupported", f"the server speaks only revisions {str(spoken)[:80]} of MCP")
    return Session(peer, desk, revisions.STATELESS, answer, meta)


def _object(result: Any, method: str) -> dict[str, Any]:
    if not isinstance(result, dict):
        raise Answered(0, f"the answer to '{method}' is no object")
    return result
