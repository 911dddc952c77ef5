"""Read from the contract where each method lives in HTTP: verb, path, what the body is, what the query may say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

WHOLE: Final = "*"
_VARIABLE_RE = re.compile(r"\{(?P<field>[a-z_][a-z0-9_.]*)(?:=(?P<pattern>\*\*))?\}")
SEGMENT: Final = "[^/:]+"
LAST_SEGMENT: Final = "[^/]+"
"""No verb follows, and digests have a colon."""
SEGMENTS: Final = ".+"

FREE_JSON: Final = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})
SCALAR_MESSAGES: Final = frozenset(
    {"google.protobuf.Duration", "google.protobuf.Timestamp", "google.protobuf.FieldMask"}
)


@dataclass(frozen=True, slots=True)
class Variable:
    """A field in the path."""

    field: str
    many: bool
    """It may hold several segments."""

    @property
    def key(self) -> str:
        """Its name in aiohttp's patterns."""
        return self.field.replace(".", "__")


@dataclass(frozen=True, slots=True)
class Binding:
    """A method's place in HTTP."""

    method: MethodDescriptor
    verb: str
    template: str
    body: str
    variables: tuple[Variable, ...]

    @property
    def told(self) -> Any:
        """The message that path, query and JSON body make: the request, or the first piece of an upload."""
        kind: Any = self.method.input_type
        if not self.method.client_streaming:
            return kind
        return next(field.message_type for field in kind.fields if field.message_type is not None)

    @property
    def request_type(self) -> type[Message]:
        return GetMessageClass(self.told)

    @property
    def pattern(self) -> str:
        """The path as aiohttp's router reads it."""

        def replace(found: re.Match[str]) -> str:
            key = found["field"].replace(".", "__")
            one = LAST_SEGMENT if found.end() == len(self.template) else SEGMENT
            return f"{{{key}:{SEGMENTS if found['pattern'] else one}}}"

        return _VARIABLE_RE.sub(replace, self.template)

    @property
    def path(self) -> str:
        """The path as OpenAPI writes it."""
        return _VARIABLE_RE.sub(lambda found: f"{{{found['field'].rpartition('.')[2]}}}", self.template)

    def takes_key(self) -> bool:
        """Whether `Idempotency-Key` names the request."""
        return "request_id" in self.told.fields_by_name

    def takes_cursor(self) -> bool:
        """Whether `Last-Event-ID` says where the stream goes on."""
        return self.method.server_streaming and "cursor" in self.method.input_type.fields_by_name

    def query(self) -> dict[str, tuple[FieldDescriptor, ...]]:
        """What the query may say: `a.b` in JSON's names, each with the fields on its way."""
        if self.body == WHOLE and not self.method.client_streaming:
            return {}
        taken = {variable.field for variable in self.variables} | {self.body, "request_id"}
        return dict(_leaves(self.told, (), taken))


def bindings(*services: ServiceDescriptor) -> Iterator[Binding]:
    """Every method of these services that has a place."""
    for service in services:
        for method in service.methods:
            options: Any = method.GetOptions()
            if options.HasExtension(annotations_pb2.http):
                yield _binding(method, options.Extensions[annotations_pb2.http])


def _binding(method: MethodDescriptor, rule: Any) -> Binding:
    verb = rule.WhichOneof("pattern")
    template = getattr(rule, verb)
    variables = tuple(
        Variable(found["field"], bool(found["pattern"])) for found in _VARIABLE_RE.finditer(template)
    )
    return Binding(method, verb.upper(), template, rule.body, variables)


def _leaves(
    message: Any, way: tuple[FieldDescriptor, ...], taken: set[str]
) -> Iterator[tuple[str, tuple[FieldDescriptor, ...]]]:
    for field in message.fields:
        here = (*way, field)
        if ".".join(step.name for step in here) in taken:
            continue
        kind = field.message_type
        if kind is None or kind.full_name in SCALAR_MESSAGES:
            yield ".".join(step.json_name for step in here), here
        elif not field.is_repeated and kind.full_name not in FREE_JSON:
            yield from _leaves(kind, here, taken)
