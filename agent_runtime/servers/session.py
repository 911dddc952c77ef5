"""The conversation with a server in its revision of MCP: the handshake, or requests that carry everything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from agent_runtime import __version__
from agent_runtime.servers.condition import Down
from agent_runtime.servers.limits import SERVER_PAGES_MAX, SERVER_TOOLS_MAX
from agent_runtime.servers.peer import Answered, Peer
from agent_runtime.tools.registry import Round
from wire.mcp import revisions

# As a client of one machine's programs we speak with older ones, too, than we serve ourselves.
HANDSHAKE: Final = (*revisions.HANDSHAKE, "2025-03-26", "2024-11-05")
_US: Final = {"name": "hyper-agent-factory", "version": __version__}

Object = Mapping[str, Any]


class Session:
    """A server that has answered. `stateless` ones have to be asked for changes of their tools."""

    def __init__(self, peer: Peer, revision: str, meta: Object) -> None:
        self._peer = peer
        self._meta = meta
        self.revision = revision
        self.stateless = revision == revisions.STATELESS

    async def list_tools(self) -> list[dict[str, Any]]:
        """Every tool, page by page. `Down` where the list has no end."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        for _ in range(SERVER_PAGES_MAX):
            page = await self._request("tools/list", {} if cursor is None else {"cursor": cursor})
            found += [tool for tool in page.get("tools") or () if isinstance(tool, dict)]
            following = page.get("nextCursor")
            if not following or not isinstance(following, str):
                return found
            if following == cursor or len(found) > SERVER_TOOLS_MAX:
                break
            cursor = following
        raise Down("TooManyTools", f"the server's list of tools has no end within {SERVER_TOOLS_MAX} tools")

    async def call_tool(
        self, name: str, arguments: Object, round: Round, on_progress: Callable[[Object], Awaitable[None]]
    ) -> dict[str, Any]:
        """Call a tool. A stateless server is told what the caller can be asked, and what it has answered."""
        params: dict[str, Any] = {"name": name, "arguments": dict(arguments)}
        meta: dict[str, Any] = {}
        if self.stateless:
            meta[revisions.META_CLIENT_CAPABILITIES] = dict(round.capabilities)
            if round.answers:
                params["inputResponses"] = dict(round.answers)
            if round.state:
                params["requestState"] = round.state
        return await self._request("tools/call", params, meta, on_progress=on_progress)

    async def listen(self) -> None:
        """Ask for notices of change; returns when the server will send none any more."""
        await self._request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})

    async def _request(
        self, method: str, params: dict[str, Any], meta: Object | None = None, **options: Any
    ) -> dict[str, Any]:
        if self._meta:
            params["_meta"] = {**self._meta, **(meta or {})}
        return _object(await self._peer.request(method, params, **options), method)


async def open_session(peer: Peer) -> Session:
    """Agree on a revision. The handshake comes first: servers of today answer it, and those that do not know it
    any more must say so, while many older ones fall silent at a method that they do not know."""
    try:
        return await _shake_hands(peer)
    except Answered as refusal:
        try:
            return await _discover(peer)
        except Answered:
            text = f"the server refuses the handshake: {refusal.message}"
            raise Down("HandshakeFailed", text) from refusal


async def _shake_hands(peer: Peer) -> Session:
    wish = {"protocolVersion": HANDSHAKE[0], "capabilities": {}, "clientInfo": _US}
    answer = _object(await peer.request("initialize", wish, cancellable=False), "initialize")
    revision = answer.get("protocolVersion")
    if revision not in HANDSHAKE:
        raise Down("VersionUnsupported", f"the server speaks revision '{str(revision)[:32]}' of MCP")
    peer.notify("notifications/initialized")
    return Session(peer, str(revision), {})


async def _discover(peer: Peer) -> Session:
    meta = {
        revisions.META_VERSION: revisions.STATELESS,
        revisions.META_CLIENT_CAPABILITIES: {},
        revisions.META_CLIENT_INFO: _US,
    }
    answer = _object(await peer.request("server/discover", {"_meta": meta}), "server/discover")
    spoken = answer.get("supportedVersions")
    if not isinstance(spoken, list) or revisions.STATELESS not in spoken:
        raise Down("VersionUnsupported", f"the server speaks only revisions {str(spoken)[:80]} of MCP")
    return Session(peer, revisions.STATELESS, meta)


def _object(result: Any, method: str) -> dict[str, Any]:
    if not isinstance(result, dict):
        raise Answered(0, f"the answer to '{method}' is no object")
    return result
