"""Turn the resources and prompts that a server lists into the agent's, read over the server's session."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent_runtime.offers import Prompt, PromptArgument, Prompted, Read, Resource
from agent_runtime.servers.condition import Down
from agent_runtime.servers.limits import SERVER_ENTRY_MAX_BYTES, SERVER_URI_MAX_CHARS
from agent_runtime.servers.peer import Answered
from agent_runtime.servers.session import Session
from agent_runtime.servers.spec import ServerSpec
from agent_runtime.tools.registry import Round
from wire.errors import Unavailable
from wire.mcp.errors import INTERNAL_ERROR, McpError
from wire.mcp.names import public_name

MESSAGE_MAX_CHARS: Final = 1000
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]")
# What lists show of a resource and a prompt, and of what type it must be: one wrong member would spoil a client's
# whole list.
_SHOWN: Final[Mapping[str, type | tuple[type, ...]]] = {
    "title": str,
    "description": str,
    "mimeType": str,
    "annotations": dict,
    "icons": list,
    "size": int,
    "_meta": dict,
}

Object = Mapping[str, Any]


@dataclass(frozen=True)
class _Behind:
    """One resource, template or prompt of a server, asked over its session. Equal where these are the same."""

    server: str
    session: Session
    own: str

    async def _ask(self, asked: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await asked
        except Answered as refusal:
            said = refusal.message[:MESSAGE_MAX_CHARS]
            raise McpError(refusal.code or INTERNAL_ERROR, said, refusal.data) from refusal
        except Down as down:
            raise Unavailable(f"server '{self.server}' ended during the call: {down.message}") from down
        return found


class _Reader(_Behind):
    async def __call__(self, uri: str, round: Round) -> Read:
        found = await self._ask(self.session.read(uri, round))
        return Read(_objects(found.get("contents")), *_asks(found))


class _Getter(_Behind):
    async def __call__(self, arguments: Mapping[str, str], round: Round) -> Prompted:
        found = await self._ask(self.session.get_prompt(self.own, arguments, round))
        said = found.get("description")
        about = said if isinstance(said, str) else ""
        return Prompted(_objects(found.get("messages")), about, *_asks(found))


class _Suggester(_Behind):
    """Here `own` is a reference: its type, and the name or the URI at the server."""

    async def __call__(self, argument: Object, context: Object) -> Object:
        if not self.session.can("completions"):
            return {"values": []}
        member = "name" if self.own.startswith("ref/prompt") else "uri"
        kind, _, name = self.own.partition(" ")
        found = await self._ask(self.session.complete({"type": kind, member: name}, argument, context))
        completion = found.get("completion")
        return completion if isinstance(completion, dict) else {"values": []}


def _asks(found: Object) -> tuple[Object, str]:
    """Questions to whoever reads, and the state that goes with them."""
    if found.get("resultType") != "input_required":
        return {}, ""
    asks = found.get("inputRequests")
    return asks if isinstance(asks, dict) else {}, str(found.get("requestState") or "")


def _objects(given: Any) -> list[dict[str, Any]]:
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def resources_of(
    spec: ServerSpec, session: Session, listed: Sequence[Object], key: str, rank: int
) -> tuple[list[Resource], str]:
    """What the agent offers of a list of resources (`uri`) or templates (`uriTemplate`), and what it cannot."""
    found: dict[str, Resource] = {}
    unfit = 0
    for item in listed:
        one = _resource(spec, session, item, item.get(key), rank)
        if one is None or one.template is not (key == "uriTemplate") or one.uri in found:
            unfit += 1
        else:
            found[one.uri] = one
    return list(found.values()), f"cannot offer {unfit} of its resources" if unfit else ""


def linked(spec: ServerSpec, session: Session, link: Object, rank: int) -> Resource | None:
    """A resource that a result has pointed to."""
    one = _resource(spec, session, link, link.get("uri"), rank)
    return None if one is None or one.template else one


def _resource(spec: ServerSpec, session: Session, item: Object, uri: Any, rank: int) -> Resource | None:
    if not isinstance(uri, str) or not 0 < len(uri) <= SERVER_URI_MAX_CHARS or not _fits(item):
        return None
    shown = _shown(item)
    return Resource(
        uri,
        shown["name"] or uri,
        fetch=_Reader(spec.name, session, ""),
        suggest=_Suggester(spec.name, session, f"ref/resource {uri}"),
        shown={**shown, "name": shown["name"] or uri},
        scope=spec.resource_scope or "",
        rank=rank,
    )


def prompts_of(spec: ServerSpec, session: Session, listed: Sequence[Object]) -> tuple[list[Prompt], str]:
    """What the agent offers of a list of prompts, each named after its server, and what it cannot."""
    found: dict[str, Prompt] = {}
    unfit = 0
    for item in listed:
        own = item.get("name")
        name = public_name(spec.name, _UNFIT.sub("_", own)) if isinstance(own, str) and own else ""
        if not name or name in found or not _fits(item):
            unfit += 1
            continue
        shown = _shown(item)
        found[name] = Prompt(
            name,
            _Getter(spec.name, session, str(own)),
            arguments=tuple(_arguments(item.get("arguments"))),
            suggest=_Suggester(spec.name, session, f"ref/prompt {own}"),
            shown={key: value for key, value in shown.items() if key != "name"},
            scope=spec.prompt_scope or "",
        )
    return list(found.values()), f"cannot offer {unfit} of its prompts" if unfit else ""


def _arguments(given: Any) -> list[PromptArgument]:
    return [
        PromptArgument(
            one["name"], _text(one, "description"), one.get("required") is True, title=_text(one, "title")
        )
        for one in _objects(given)
        if isinstance(one.get("name"), str)
    ]


def _text(item: Object, key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else ""


def _shown(item: Object) -> dict[str, Any]:
    """What is shown of an item; its name may be empty."""
    told = {key: item[key] for key, kind in _SHOWN.items() if isinstance(item.get(key), kind)}
    return {"name": _text(item, "name"), **told}


def _fits(item: Object) -> bool:
    return len(json.dumps(item)) <= SERVER_ENTRY_MAX_BYTES
