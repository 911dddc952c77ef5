"""Make a request of the contract from an HTTP request: body, path and query; whatever is unknown is refused."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from factory_server.api.http.app import KEY, KEY_HEADER
from factory_server.api.http.bindings import WHOLE, Binding
from wire.proto_json import bad, fill, load_object, relaxed

LAST_EVENT = "Last-Event-ID"
TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Asked:
    """What an HTTP request says, before anything of it is believed."""

    path: Mapping[str, str]
    query: Sequence[tuple[str, str]]
    body: bytes
    key: str = ""
    """`Idempotency-Key`."""
    last_event: str = ""
    """`Last-Event-ID`."""
    tell_key: Callable[[str], None] = lambda key: None
    """Is told under which key the request is carried out."""


def asked_of(request: web.Request, body: bytes = b"") -> Asked:
    """What a request says, its body already read."""
    return Asked(
        path=request.match_info,
        query=list(request.query.items()),
        body=body,
        key=request.headers.get(KEY_HEADER, ""),
        last_event=request.headers.get(LAST_EVENT, ""),
        # Said in every answer: a caller who gave no key can repeat what may have been done.
        tell_key=lambda key: request.__setitem__(KEY, key),
    )


class Decoder:
    """Decodes the requests of one method."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._type = binding.request_type
        self._query = binding.query()
        # A field may be spelled as JSON does, or as the contract does.
        self._names = self._query | {".".join(f.name for f in way): way for way in self._query.values()}

    def __call__(self, asked: Asked) -> Message:
        message = self._type()
        self._take_body(asked.body, message)
        self._take_query(asked.query, message)
        for variable in self._binding.variables:
            self._take_path(variable.field, asked.path[variable.key], message)
        if self._binding.takes_key():
            self._take_key(asked, message)
        if asked.last_event and self._binding.takes_cursor():
            # A browser comes again with the query it had at first: the header is newer.
            message.ClearField("cursor")
            fill({"cursor": asked.last_event}, message)
        return message

    def _take_key(self, asked: Asked, message: Any) -> None:
        if asked.key:
            _settle(message, "request_id", asked.key, "Idempotency-Key")
        elif not message.request_id:
            message.request_id = str(uuid.uuid4())
        asked.tell_key(message.request_id)

    def _take_body(self, body: bytes, message: Message) -> None:
        field = self._binding.body
        if not field:
            if body.strip():
                raise bad("body", "is not expected by this method")
            return
        given = load_object(body) if body.strip() else {}
        document = given if field == WHOLE else {field: given}
        fill(relaxed(document, message.DESCRIPTOR), message)

    def _take_query(self, query: Sequence[tuple[str, str]], message: Message) -> None:
        document: dict[str, Any] = {}
        for name, text in query:
            way = self._names.get(name)
            if way is None:
                raise bad(name, "is no parameter of this method")
            _put(document, way, text)
        if document:
            fill(relaxed(document, message.DESCRIPTOR), message)

    def _take_path(self, path: str, text: str, message: Message) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        _settle(message, name, text, path)


def _settle(message: Any, name: str, text: str, source: str) -> None:
    """Set a field from beside the body; the body may say the same, not something else."""
    said = getattr(message, name)
    if said and said != text:
        raise bad(name, f"says something else than '{source}'")
    fill({name: text}, message)


def _put(document: dict[str, Any], way: tuple[FieldDescriptor, ...], text: str) -> None:
    name = ".".join(step.json_name for step in way)
    for step in way[:-1]:
        document = document.setdefault(step.json_name, {})
    last = way[-1]
    value = _leaf(last, text, name)
    if last.is_repeated:
        document.setdefault(last.json_name, []).append(value)
    elif last.json_name in document:
        raise bad(name, "is given twice")
    else:
        document[last.json_name] = value


def _leaf(field: FieldDescriptor, text: str, name: str) -> Any:
    if field.type != FieldDescriptor.TYPE_BOOL:
        return text
    if text not in TRUTHS:
        raise bad(name, "must be 'true' or 'false'")
    return TRUTHS[text]
