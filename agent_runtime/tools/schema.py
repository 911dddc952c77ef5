"""Check arguments against JSON Schema 2020-12 (and 07, which many servers still write), within bounds.

Formats are notes, as the standard has it. What could not be checked is refused when a tool is offered: a bound
that is not enforced is worse than none. No reference leads out of the schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agent_runtime.tools.budget import TooLong, bounded
from agent_runtime.tools.keywords import APPLIERS, CHECKS, SchemaError, Walk, is_type, resolve

DIALECTS: Final = frozenset(
    {
        "https://json-schema.org/draft/2020-12/schema",
        "http://json-schema.org/draft-07/schema",
    }
)
# Of the standard's vocabulary: what needs notes about other keywords' success, or leads anywhere at run time.
UNCHECKED: Final = frozenset(
    {
        *("unevaluatedProperties", "unevaluatedItems", "contentSchema", "additionalItems"),
        *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary"),
    }
)
SUBSCHEMAS_MAX: Final = 2000
DEPTH_MAX: Final = 32
PATTERN_MAX_CHARS: Final = 512

Schema = Mapping[str, Any]

_ONE: Final = ("additionalProperties", "items", "contains", "not", "if", "then", "else", "propertyNames")
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS: Final = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions", "dependencies")


def check_schema(schema: Schema) -> None:
    """Refuse (`SchemaError`) a schema that is none, that is too large, or that says more than we check."""
    dialect = schema.get("$schema")
    if dialect is not None and str(dialect).removesuffix("#") not in DIALECTS:
        raise SchemaError(f"cannot check the dialect '{dialect}' in a tool's schema")
    if schema.get("type", "object") != "object":
        raise SchemaError("a tool's arguments are of type object")
    try:
        bounded(lambda: _check_all(schema))
    except TooLong as error:
        raise SchemaError("a tool's schema takes too long to check") from error


def _check_all(schema: Schema) -> None:
    for count, inner in enumerate(_walk(schema, 0)):
        if count >= SUBSCHEMAS_MAX:
            raise SchemaError(f"a tool's schema has more than {SUBSCHEMAS_MAX} parts")
        _check_one(inner, schema)


def _walk(schema: Any, depth: int) -> Iterator[Schema]:
    """The schema and all in it."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise SchemaError("a part of a tool's schema is no schema")
    if depth > DEPTH_MAX:
        raise SchemaError(f"a tool's schema is more than {DEPTH_MAX} levels deep")
    yield schema
    inner = [schema[key] for key in _ONE if key in schema and not isinstance(schema[key], list)]
    inner += [one for key in _LISTS if isinstance(schema.get(key), list) for one in schema[key]]
    for key in _MAPS:
        found = schema.get(key, {})
        if not isinstance(found, Mapping):
            raise SchemaError(f"'{key}' in a tool's schema is no object")
        inner += [one for one in found.values() if not (key == "dependencies" and isinstance(one, list))]
    for one in inner:
        yield from _walk(one, depth + 1)


def _check_one(schema: Schema, root: Schema) -> None:
    if unchecked := schema.keys() & UNCHECKED:
        raise SchemaError(f"cannot check {', '.join(sorted(unchecked))} in a tool's schema")
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        is_type(None, kind)  # raises for an unknown one
    if "$ref" in schema:
        resolve(root, schema["$ref"])
    for pattern in [schema.get("pattern", ""), *schema.get("patternProperties", {})]:
        if not isinstance(pattern, str) or len(pattern) > PATTERN_MAX_CHARS:
            raise SchemaError("a pattern in a tool's schema is too long")
        try:
            re.compile(pattern)
        except re.error as error:
            raise SchemaError(f"cannot check the pattern '{pattern[:80]}': {error}") from error
    for keyword, expected in _SHAPES.items():
        if keyword in schema and not isinstance(schema[keyword], expected):
            raise SchemaError(f"'{keyword}' in a tool's schema has the wrong type")


_NUMBER: Final = (int, float)
_SHAPES: Final[dict[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("enum", "required", "allOf", "anyOf", "oneOf", "prefixItems"), list),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minContains", "maxContains"), _NUMBER
    ),
    **dict.fromkeys(("minProperties", "maxProperties"), _NUMBER),
    "dependentRequired": Mapping,
    "uniqueItems": bool,
}


def problems(schema: Schema, value: Any, path: str = "arguments") -> Iterator[str]:
    """What is wrong with a value, one sentence each."""
    return _problems(schema, value, path, Walk(schema, _problems))


def faults(schema: Schema, arguments: Any) -> list[str]:
    """What is wrong with a call's arguments, found within bounds: what cannot be checked is wrong."""
    try:
        return bounded(lambda: list(problems(schema, arguments)))
    except TooLong:
        return ["arguments take too long to check"]


def mismatches(schema: Schema, result: Any) -> list[str]:
    """What is wrong with a result; nothing where it is too much to check, for that is no fault of the tool."""
    walk = Walk(schema, _problems)
    try:
        found = bounded(lambda: list(_problems(schema, result, "result", walk)))
    except TooLong:
        return []
    return [] if walk.cut else found


def _problems(schema: Schema | bool, value: Any, path: str, walk: Walk) -> Iterator[str]:
    if isinstance(schema, bool):
        if not schema:
            yield f"{path} is not allowed"
        return
    if not walk.step():
        yield f"{path} is too much to check"
        return
    kind = schema.get("type")
    if kind is not None and not is_type(value, kind):
        kinds = " or ".join(kind) if isinstance(kind, list) else kind
        yield f"{path} must be of type {kinds}"
        walk.back()
        return
    for keyword, said in schema.items():
        if check := CHECKS.get(keyword):
            yield from check(said, value, path)
        elif applier := APPLIERS.get(keyword):
            yield from applier(schema, value, path, walk)
    walk.back()
