"""Check arguments against the part of JSON Schema 2020-12 that tools use; unknown keywords are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (Mapping,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_ANNOTATIONS: Final = frozenset({"description", "title", "default", "examples", "$schema", "type"})
_KNOWN: Final = _ANNOTATIONS | {
    *("properties", "required", "additionalProperties", "items", "enum", "minItems", "maxItems"),
    *("minLength", "maxLength", "minimum", "maximum"),
}


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that says more than we check: a bound that is not enforced is worse than none."""
    if unknown := schema.keys() - _KNOWN:
        raise ValueError(f"cannot check {', '.join(sorted(unknown))} in a tool's schema")
    if schema.get("type", "object") not in _TYPES:
        raise ValueError(f"unknown type {schema['type']!r} in a tool's schema")
    for inner in schema.get("properties", {}).values():
        check_schema(inner)
    if "items" in schema:
        check_schema(schema["items"])


def problems(schema: Mapping[str, Any], value: Any, path: str = "arguments") -> Iterator[str]:
    """What is wrong with a value, one sentence each."""
    kind = schema.get("type")
    if kind is not None and not _has_type(value, kind):
        yield f"{path} must be of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path} must be one of {', '.join(map(repr, schema['enum']))}"
    match value:
        case str():
            yield from _size(len(value), schema, "Length", f"{path} must have", "characters")
        case bool() | None:
            return
        case int() | float():
            yield from _range(value, schema, path)
        case list() | tuple():
            yield from _size(len(value), schema, "Items", f"{path} must have", "items")
            for index, item in enumerate(value):
                yield from problems(schema.get("items", {}), item, f"{path}[{index}]")
        case Mapping():
            yield from _members(schema, value, path)
        case _:
            return


def _has_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def _size(size: int, schema: Mapping[str, Any], suffix: str, subject: str, unit: str) -> Iterator[str]:
    if size < schema.get(f"min{suffix}", 0):
        yield f"{subject} at least {schema[f'min{suffix}']} {unit}"
    if size > schema.get(f"max{suffix}", size):
        yield f"{subject} at most {schema[f'max{suffix}']} {unit}"


def _range(value: float, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if value < schema.get("minimum", value):
        yield f"{path} must be at least {schema['minimum']}"
    if value > schema.get("maximum", value):
        yield f"{path} must be at most {schema['maximum']}"


def _members(schema: Mapping[str, Any], value: Mapping[str, Any], path: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name} is required"
    for name, item in value.items():
        if name in properties:
            yield from problems(properties[name], item, f"{path}.{name}")
        elif schema.get("additionalProperties", True) is False:
            yield f"{path}.{name} is unknown"
