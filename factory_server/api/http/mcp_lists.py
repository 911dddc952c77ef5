"""A crew's tools as MCP lists them: encoded once for all who ask, in pages, in the order of their names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.json_format import MessageToDict

from factory_server.core import tools
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import Invalid
from factory_server.core.scopes import widest
from factory_server.core.tools import Entry
from hyperfactory.v1 import agent_service_pb2
from wire.mcp import forms, messages
from wire.mcp.errors import invalid_params
from wire.mcp.messages import Json

PAGE_MAX: Final = 500
CREWS_MAX: Final = 256
"""Lists that are kept encoded."""
SHAPES_MAX: Final = 4096
"""Tools that are kept encoded: agents of one profile have the same ones."""
META: Final = "hyperfactory.local/"

Listed = Sequence[tuple[str, bytes]]
"""Tools by name, encoded."""


@dataclass(slots=True)
class _Crew:
    """A crew's tools as they were when they were last asked for."""

    known: Mapping[str, Entry]
    encoded: Mapping[str, tuple[Entry, bytes]]
    lists: dict[str, Listed] = field(default_factory=dict)
    """By how far their reader reaches."""


class EncodedLists:
    """Lists of crews; of one that changed, only the tools that did are made anew."""

    def __init__(self, codec: CursorCodec) -> None:
        self._codec = codec
        self._crews: OrderedDict[str, _Crew] = OrderedDict()
        self._shapes: OrderedDict[bytes, bytes] = OrderedDict()

    def page(
        self, crew: str, known: Mapping[str, Entry], scopes: frozenset[str], cursor: object
    ) -> tuple[bytes, str]:
        """A JSON array of tools, and the cursor of the next page ('' on the last)."""
        listed = self._listed(crew, known, scopes)
        scope = f"mcp-tools|{crew}"
        if begin := after(self._codec, scope, cursor):
            listed = [item for item in listed if item[0] > begin]
        shown = listed[:PAGE_MAX]
        body = b"[" + b",".join(encoded for _, encoded in shown) + b"]"
        return body, self._codec.encode(scope, shown[-1][0]) if len(listed) > PAGE_MAX else ""

    def _listed(self, crew: str, known: Mapping[str, Entry], scopes: frozenset[str]) -> Listed:
        kept = self._crews.get(crew)
        if kept is None or kept.known is not known:
            kept = self._crews[crew] = _Crew(known, self._encoded(known, kept.encoded if kept else {}))
        self._crews.move_to_end(crew)  # the last one used is the last to go
        if len(self._crews) > CREWS_MAX:
            self._crews.popitem(last=False)
        reach = widest(scopes)
        listed = kept.lists.get(reach)
        if listed is None:
            listed = kept.lists[reach] = [
                (name, encoded)
                for name, (entry, encoded) in kept.encoded.items()
                if tools.may_use(entry.tool, scopes)
            ]
        return listed

    def _encoded(
        self, known: Mapping[str, Entry], before: Mapping[str, tuple[Entry, bytes]]
    ) -> Mapping[str, tuple[Entry, bytes]]:
        found: dict[str, tuple[Entry, bytes]] = {}
        for name, entry in known.items():
            held = before.get(name)
            found[name] = held if held is not None and held[0] is entry else (entry, self._shape(entry))
        return found

    def _shape(self, entry: Entry) -> bytes:
        """A tool as lists show it: its name, what its agent said of it, and whose it is."""
        key = entry.tool.SerializeToString(deterministic=True)
        said = self._shapes.pop(key, None) or messages.encode(shape(entry.tool))
        self._shapes[key] = said
        if len(self._shapes) > SHAPES_MAX:
            self._shapes.popitem(last=False)
        name = messages.encode({"name": entry.name})
        return name[:-1] + b"," + said[1:-1] + b"," + messages.encode({"_meta": about(entry)})[1:]


def after(codec: CursorCodec, scope: str, cursor: object) -> str:
    """Behind which key a page begins; '' for the first. `McpError` for a cursor that is not of this list."""
    if cursor is None:
        return ""
    if not isinstance(cursor, str):
        raise invalid_params("params.cursor is not ours")
    try:
        return codec.decode(scope, cursor)
    except Invalid as error:
        raise invalid_params(error.message) from error


def about(entry: Entry) -> Json:
    """Whose a tool is, and what it is called there."""
    meta: Json = {META + "agent": entry.agent_name, META + "tool": entry.tool.name}
    return meta | {META + "stale": True} if entry.stale else meta


def shape(tool: agent_service_pb2.Tool) -> Json:
    """What an agent says of a tool, but for its name."""
    shown = forms.tool(
        "",
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
    )
    del shown["name"]
    return shown


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
