"""A crew's tools as MCP lists them: encoded once for all who ask, in pages, in the order of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from google.protobuf.json_format import MessageToDict

from factory_server.core import tools
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import Invalid
from factory_server.core.tools import Entry
from wire.mcp import forms, messages
from wire.mcp.errors import invalid_params
from wire.mcp.messages import Json

PAGE_MAX: Final = 500
CREWS_MAX: Final = 256
"""Lists that are kept encoded."""
META: Final = "hyperfactory.local/"


class EncodedLists:
    """Lists by crew and by whether their reader may write; made anew when the registry's names are other ones."""

    def __init__(self, codec: CursorCodec) -> None:
        self._codec = codec
        self._kept: dict[tuple[str, bool], tuple[Mapping[str, Entry], Sequence[tuple[str, bytes]]]] = {}

    def page(
        self, crew: str, known: Mapping[str, Entry], scopes: frozenset[str], cursor: object
    ) -> tuple[bytes, str]:
        """A JSON array of tools, and the cursor of the next page ('' on the last)."""
        listed = self._listed(crew, known, scopes)
        scope = f"mcp-tools|{crew}"
        if cursor is not None:
            after = self._after(scope, cursor)
            listed = [item for item in listed if item[0] > after]
        shown = listed[:PAGE_MAX]
        body = b"[" + b",".join(encoded for _, encoded in shown) + b"]"
        return body, self._codec.encode(scope, shown[-1][0]) if len(listed) > PAGE_MAX else ""

    def _after(self, scope: str, cursor: object) -> str:
        if not isinstance(cursor, str):
            raise invalid_params("params.cursor is not ours")
        try:
            return self._codec.decode(scope, cursor)
        except Invalid as error:
            raise invalid_params(error.message) from error

    def _listed(
        self, crew: str, known: Mapping[str, Entry], scopes: frozenset[str]
    ) -> Sequence[tuple[str, bytes]]:
        key = (crew, not tools.WRITERS.isdisjoint(scopes))
        kept = self._kept.pop(key, None)
        if kept is None or kept[0] is not known:
            usable = (entry for entry in known.values() if tools.may_use(entry.tool, scopes))
            kept = (known, [(entry.name, messages.encode(shape(entry))) for entry in usable])
        self._kept[key] = kept  # the last one used is the last to go
        while len(self._kept) > CREWS_MAX:
            del self._kept[next(iter(self._kept))]
        return kept[1]


def shape(entry: Entry) -> Json:
    """A tool as lists show it, with what it is called at its agent."""
    tool = entry.tool
    meta: Json = {META + "agent": entry.agent_name, META + "tool": tool.name}
    if entry.stale:
        meta[META + "stale"] = True
    return forms.tool(
        entry.name,
        tool.description,
        _whole(MessageToDict(tool.input_schema)),
        title=tool.title,
        output_schema=_whole(MessageToDict(tool.output_schema)) if tool.HasField("output_schema") else None,
        annotations=forms.hints(
            read_only=tool.read_only,
            destructive=tool.destructive if tool.HasField("destructive") else None,
            idempotent=tool.idempotent if tool.HasField("idempotent") else None,
            open_world=tool.open_world if tool.HasField("open_world") else None,
        ),
        meta=meta,
    )


def _whole(value: Json) -> Json:
    """Whole numbers without a fraction: a Struct knows only floats, and a schema's `maxLength` is none."""
    found = _unfloat(value)
    assert isinstance(found, dict)
    return found


def _unfloat(value: object) -> object:
    match value:
        case dict():
            return {key: _unfloat(item) for key, item in value.items()}
        case list():
            return [_unfloat(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
