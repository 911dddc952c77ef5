"""Describe the contract's messages as JSON Schema: proto3 JSON, the constraints of requests, the comments."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

import hyperfactory.v1.types_pb2
from buf.validate import validate_pb2
from wire.validation import RequestValidator

Json = dict[str, Any]

COMMENTS: Final = "comments.json"
DURATION: Final = r"^-?[0-9]+(\.[0-9]{1,9})?s$"
_WORDS: Final[dict[str, Json]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": DURATION, "examples": ["1.5s"]},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
    },
}
_WIDE: Final = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
}
_FLOATS: Final = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}
_LIMITS: Final = {
    "min_len": "minLength",
    "max_len": "maxLength",
    "pattern": "pattern",
    "gte": "minimum",
    "lte": "maximum",
    "gt": "exclusiveMinimum",
    "lt": "exclusiveMaximum",
    "min_items": "minItems",
    "max_items": "maxItems",
    "min_pairs": "minProperties",
    "max_pairs": "maxProperties",
}


@functools.cache
def comments() -> Mapping[str, str]:
    """What the contract says above each thing, by full name."""
    file = Path(hyperfactory.v1.types_pb2.__file__).parents[1] / COMMENTS
    found: dict[str, str] = json.loads(file.read_text())
    return found


class Schemas:
    """Components as they are asked for: `Name` as answers have it, `NameInput` as requests may give it."""

    def __init__(self) -> None:
        self.components: dict[str, Json] = {}
        self._validate = RequestValidator()

    def message(self, kind: Any, *, given: bool) -> Json:
        """A reference to a message's schema."""
        if kind.full_name in _WORDS:
            return dict(_WORDS[kind.full_name])
        name = kind.name + ("Input" if given and not kind.name.endswith("Request") else "")
        if name not in self.components:
            self.components[name] = {}  # a message may hold itself
            self.components[name] = self.object(kind, given=given)
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, kind: Any, *, given: bool, without: frozenset[str] = frozenset()) -> Json:
        """A message's schema in place, without some of its fields."""
        fields = [field for field in kind.fields if field.name not in without]
        schema: Json = {
            "type": "object",
            "properties": {field.json_name: self.field(field, given=given) for field in fields},
            "additionalProperties": False,
        }
        if text := comments().get(kind.full_name):
            schema["description"] = text
        if given:
            needed = self.needed(kind)
            if required := [field.json_name for field in fields if field.name in needed]:
                schema["required"] = required
            if choices := [_choice(oneof) for oneof in kind.oneofs if _must_choose(oneof)]:
                schema["allOf"] = choices
        return schema

    def needed(self, kind: Any) -> frozenset[str]:
        """Fields without which a request is refused: what is wrong with an empty one says it."""
        return frozenset(found.field for found in self._validate(GetMessageClass(kind)()))

    def field(self, field: Any, *, given: bool) -> Json:
        """A field's schema, with its comment and, in requests, its limits."""
        rules = _rules(field) if given else None
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            schema = self._map(field, rules, given=given)
        elif field.is_repeated:
            items = self._single(field, given=given)
            if rules is not None:
                items |= _limits(rules.repeated.items)
            schema = {"type": "array", "items": items} | (_limits(rules) if rules is not None else {})
        else:
            schema = self._single(field, given=given) | (_limits(rules) if rules is not None else {})
        if text := comments().get(f"{field.containing_type.full_name}.{field.name}"):
            schema["description"] = text
        return schema

    def _map(self, field: Any, rules: Any, *, given: bool) -> Json:
        value = self._single(field.message_type.fields_by_name["value"], given=given)
        schema: Json = {"type": "object", "additionalProperties": value}
        if rules is not None:
            value |= _limits(rules.map.values)
            if names := _limits(rules.map.keys):
                schema["propertyNames"] = names
            schema |= _limits(rules)
        return schema

    def _single(self, field: Any, *, given: bool) -> Json:
        if field.message_type is not None:
            return self.message(field.message_type, given=given)
        if field.enum_type is not None:
            return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
        if field.type in _WIDE:
            # proto3 JSON writes them as text, and reads both.
            return {"type": ["string", "integer"] if given else "string", "format": "int64"}
        if field.type in _FLOATS:
            return {"type": "number"}
        if field.type == FieldDescriptor.TYPE_BOOL:
            return {"type": "boolean"}
        if field.type == FieldDescriptor.TYPE_STRING:
            return {"type": "string"}
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        return {"type": "integer", "format": "int32"}


def _rules(field: Any) -> Any:
    options = field.GetOptions()
    return options.Extensions[validate_pb2.field] if options.HasExtension(validate_pb2.field) else None


def _limits(rules: Any) -> Json:
    """The limits that JSON Schema has words for."""
    which = rules.WhichOneof("type")
    if which in (None, "duration", "timestamp"):
        return {}
    chosen = getattr(rules, which)
    found: Json = {}
    for rule, value in chosen.ListFields():
        if rule.name in _LIMITS:
            found[_LIMITS[rule.name]] = value
        elif rule.name == "in":
            found["enum"] = list(value)
        elif rule.name == "uuid":
            found["format"] = "uuid"
    return found


def _must_choose(oneof: Any) -> bool:
    options = oneof.GetOptions()
    return bool(options.HasExtension(validate_pb2.oneof) and options.Extensions[validate_pb2.oneof].required)


def _choice(oneof: Any) -> Json:
    return {"oneOf": [{"required": [field.json_name]} for field in oneof.fields]}
