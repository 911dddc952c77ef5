"""Protobuf Struct and Value to plain Python and back; whole numbers come out as ints, as JSON readers expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from wire.errors import Invalid


def to_dict(struct: Struct) -> dict[str, Any]:
    return {key: to_plain(value) for key, value in struct.fields.items()}


def to_plain(value: Value) -> Any:
    """The plain form of one value; an unset value is None."""
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return to_dict(value.struct_value)
        case "list_value":
            return [to_plain(item) for item in value.list_value.values]
        case _:
            return None


def to_struct(plain: Mapping[str, Any]) -> Struct:
    struct = Struct()
    for key, item in plain.items():
        struct.fields[sayable(str(key))].CopyFrom(to_value(item))
    return struct


def sayable(text: str) -> str:
    """The text, a question mark for each half of a character: that has no bytes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def to_value(plain: Any) -> Value:
    """The message of one plain value; `Invalid` for what JSON cannot carry."""
    match plain:
        case None:
            return Value(null_value=0)  # type: ignore[arg-type]  # the enum's only value
        case bool():
            return Value(bool_value=plain)
        case int() | float():
            if not math.isfinite(plain):
                raise Invalid(f"cannot send the number {plain}: it is no JSON")
            return Value(number_value=plain)
        case str():
            return Value(string_value=sayable(plain))
        case Mapping():
            return Value(struct_value=to_struct(plain))
        case list() | tuple():
            return Value(list_value=ListValue(values=[to_value(item) for item in plain]))
        case _:
            raise Invalid(f"cannot send a value of type {type(plain).__name__}: it is no JSON")
