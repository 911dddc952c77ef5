"""The forms that servers fill: results, lists, tools, content, capabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from wire.mcp.errors import missing_capability
from wire.mcp.messages import Id, Json, notification
from wire.mcp.revisions import (
    ACKNOWLEDGED,
    LISTENABLE,
    META_SERVER_INFO,
    META_SUBSCRIPTION,
    PROGRESS,
    STATELESS,
)

# Lists and what is read may depend on who asks.
CACHE_SCOPE: Final = "private"
LIST_TTL_MS: Final = 5000

# What a server may ask for in the midst of a call, and the client's capability that it takes.
INPUTS: Final = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


def complete(value: Mapping[str, Any], revision: str, server: Mapping[str, Any] | None = None) -> Json:
    """A result that is the last word, as the revision writes it."""
    return _typed("complete", value, revision, server)


def input_required(
    requests: Mapping[str, Any],
    state: str,
    revision: str = STATELESS,
    server: Mapping[str, Any] | None = None,
) -> Json:
    """A result that wants answers first; the client calls again with them and with the state."""
    value: Json = {}
    if requests:
        value["inputRequests"] = dict(requests)
    if state:
        value["requestState"] = state
    return _typed("input_required", value, revision, server)


def _typed(kind: str, value: Mapping[str, Any], revision: str, server: Mapping[str, Any] | None) -> Json:
    if revision != STATELESS:
        return dict(value)
    meta = dict(value.get("_meta", {}))
    if server is not None:
        meta[META_SERVER_INFO] = dict(server)
    typed = {**value, "resultType": kind}
    return typed | {"_meta": meta} if meta else typed


def cached(value: Mapping[str, Any], ttl_ms: int = LIST_TTL_MS) -> Json:
    """A list, or what was read, and for how long it may be kept."""
    return {**value, "ttlMs": ttl_ms, "cacheScope": CACHE_SCOPE}


def text(said: str) -> Json:
    return {"type": "text", "text": said}


def called(content: Sequence[Mapping[str, Any]], structured: Any = None, *, is_error: bool = False) -> Json:
    """What a tool answered."""
    value: Json = {"content": list(content), "isError": is_error}
    return value if structured is None else value | {"structuredContent": structured}


def tool(
    name: str,
    description: str,
    input_schema: Mapping[str, Any],
    *,
    title: str = "",
    output_schema: Mapping[str, Any] | None = None,
    annotations: Mapping[str, bool] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Json:
    """A tool as lists show it."""
    shown: Json = {
        "name": name,
        "description": description,
        "inputSchema": {"type": "object", **input_schema},
    }
    optional = {
        "title": title,
        "outputSchema": output_schema,
        "annotations": annotations,
        "_meta": meta,
    }
    return shown | {key: value for key, value in optional.items() if value}


def hints(
    *,
    read_only: bool,
    destructive: bool | None = None,
    idempotent: bool | None = None,
    open_world: bool | None = None,
) -> dict[str, bool]:
    """What a tool hints at; what it does not say is left out."""
    said = {
        "readOnlyHint": read_only,
        "destructiveHint": destructive,
        "idempotentHint": idempotent,
        "openWorldHint": open_world,
    }
    return {key: value for key, value in said.items() if value is not None}


def check_inputs(requests: Mapping[str, Any], capabilities: Mapping[str, Any]) -> None:
    """Refuse to ask a client for what it has not declared that it can give."""
    needed = {INPUTS[str(one.get("method"))] for one in requests.values() if one.get("method") in INPUTS}
    if missing := sorted(needed - capabilities.keys()):
        raise missing_capability({name: {} for name in missing})


def progress(token: str | int, done: float, total: float | None = None, message: str = "") -> Json:
    params: Json = {"progressToken": token, "progress": done}
    if total is not None:
        params["total"] = total
    if message:
        params["message"] = message
    return notification(PROGRESS, params)


def subscribed(method: str, subscription: Id, params: Mapping[str, Any] | None = None) -> Json:
    """A notification on the stream of `subscriptions/listen`."""
    meta = {META_SUBSCRIPTION: subscription}
    return notification(method, {**(params or {}), "_meta": meta})


def acknowledged(subscription: Id, wanted: Mapping[str, Any]) -> Json:
    """The first message on such a stream: what will come on it."""
    return subscribed(ACKNOWLEDGED, subscription, {"notifications": dict(wanted)})


def listenable(asked: Any, offered: Iterable[str]) -> Json:
    """What of the asked-for notifications a server can send."""
    if not isinstance(asked, Mapping):
        return {}
    able = set(offered)
    wanted: Json = {key: True for key in LISTENABLE if asked.get(key) is True and key in able}
    uris = asked.get("resourceSubscriptions")
    if "resourceSubscriptions" in able and isinstance(uris, list):
        wanted["resourceSubscriptions"] = [uri for uri in uris if isinstance(uri, str)]
    return wanted
