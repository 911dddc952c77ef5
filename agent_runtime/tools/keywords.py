"""The keywords of JSON Schema: those that look at a value alone, and those that apply other schemas to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

STEPS_MAX: Final = 20_000
DEPTH_MAX: Final = 64

Schema = Mapping[str, Any]
Problems = Iterator[str]
Check = Callable[[Any, Any, str], Problems]

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (Mapping,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class SchemaError(ValueError):
    """A schema that is none, or that we cannot check."""


class Walk:
    """One check of one value: its root schema, and how far it may go."""

    def __init__(self, root: Schema, problems: Callable[[Any, Any, str, Walk], Problems]) -> None:
        self.root = root
        self.problems = problems
        self._steps = 0
        self._depth = 0
        self.cut = False
        """It did not go to the end: what it found is not the whole truth."""

    def step(self) -> bool:
        """Whether another schema may be applied; `back` undoes its depth."""
        self._steps += 1
        if self._steps > STEPS_MAX or self._depth >= DEPTH_MAX:
            self.cut = True
            return False
        self._depth += 1
        return True

    def back(self) -> None:
        self._depth -= 1

    def fits(self, schema: Any, value: Any) -> bool:
        # To the end, not to the first problem: each step that was taken must be taken back.
        return not list(self.problems(schema, value, "", self))


def is_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return any(is_type(value, one) for one in kind)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise SchemaError(f"unknown type {kind!r} in a tool's schema")
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def resolve(root: Schema, reference: Any) -> Any:
    """The part of the schema that a reference names; `SchemaError` for one that leads nowhere, or out of it."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise SchemaError(f"cannot follow the reference {reference!r:.80}: it leads out of the schema")
    fragment = unquote(reference[1:])
    found = (
        _pointed(root, fragment) if not fragment or fragment.startswith("/") else _anchored(root, fragment)
    )
    if not isinstance(found, Mapping | bool):
        raise SchemaError(f"the reference '{reference[:80]}' leads nowhere")
    return found


def _pointed(root: Any, pointer: str) -> Any:
    found = root
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _anchored(schema: Any, anchor: str) -> Any:
    if isinstance(schema, Mapping):
        if schema.get("$anchor") == anchor:
            return schema
        schema = list(schema.values())
    if isinstance(schema, list):
        return next((found for inner in schema if (found := _anchored(inner, anchor)) is not None), None)
    return None


def key(value: Any) -> Any:
    """A form in which values that are equal in JSON are equal in Python, and others are not."""
    match value:
        case bool() | None:
            return (type(value).__name__, value)
        case list() | tuple():
            return ("array", tuple(key(item) for item in value))
        case Mapping():
            return ("object", frozenset((name, key(item)) for name, item in value.items()))
        case _:
            return value


# Keywords that look at the value alone.


def _enum(said: Any, value: Any, path: str) -> Problems:
    if key(value) not in [key(item) for item in said]:
        yield f"{path} must be one of {', '.join(map(repr, said))[:400]}"


def _const(said: Any, value: Any, path: str) -> Problems:
    if key(value) != key(said):
        yield f"{path} must be {said!r:.200}"


def _size(kind: Any, unit: str, bound: str) -> Check:
    def check(said: Any, value: Any, path: str) -> Problems:
        if isinstance(value, kind) and (len(value) < said if bound == "least" else len(value) > said):
            yield f"{path} must have at {bound} {said} {unit}"

    return check


def _bound(words: str, holds: Callable[[Any, Any], bool]) -> Check:
    def check(said: Any, value: Any, path: str) -> Problems:
        if isinstance(value, int | float) and not isinstance(value, bool) and not holds(value, said):
            yield f"{path} must be {words} {said}"

    return check


def _multiple(value: Any, of: Any) -> bool:
    if isinstance(value, float) or isinstance(of, float):
        return bool((value / of).is_integer())
    return bool(value % of == 0)


def _pattern(said: Any, value: Any, path: str) -> Problems:
    if isinstance(value, str) and not re.search(said, value):
        yield f"{path} must match {said}"


def _unique(said: Any, value: Any, path: str) -> Problems:
    if said and isinstance(value, list | tuple) and len({key(item) for item in value}) < len(value):
        yield f"{path} must have no two equal items"


def _required(said: Any, value: Any, path: str) -> Problems:
    if isinstance(value, Mapping):
        yield from (f"{path}.{name} is required" for name in said if name not in value)


def _dependent_required(said: Any, value: Any, path: str) -> Problems:
    if isinstance(value, Mapping):
        for name, needed in said.items():
            if name in value:
                yield from _required(needed, value, path)


_ARRAYS: Final = (list, tuple)
CHECKS: Final[dict[str, Check]] = {
    "enum": _enum,
    "const": _const,
    "minLength": _size(str, "characters", "least"),
    "maxLength": _size(str, "characters", "most"),
    "minItems": _size(_ARRAYS, "items", "least"),
    "maxItems": _size(_ARRAYS, "items", "most"),
    "minProperties": _size(Mapping, "members", "least"),
    "maxProperties": _size(Mapping, "members", "most"),
    "minimum": _bound("at least", lambda value, said: value >= said),
    "maximum": _bound("at most", lambda value, said: value <= said),
    "exclusiveMinimum": _bound("more than", lambda value, said: value > said),
    "exclusiveMaximum": _bound("less than", lambda value, said: value < said),
    "multipleOf": _bound("a multiple of", _multiple),
    "pattern": _pattern,
    "uniqueItems": _unique,
    "required": _required,
    "dependentRequired": _dependent_required,
}


# Keywords that apply other schemas.


def _ref(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    yield from walk.problems(resolve(walk.root, schema["$ref"]), value, path, walk)


def _all_of(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    for inner in schema["allOf"]:
        yield from walk.problems(inner, value, path, walk)


def _any_of(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if not any(walk.fits(inner, value) for inner in schema["anyOf"]):
        yield f"{path} fits none of the allowed forms"


def _one_of(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    fitting = sum(walk.fits(inner, value) for inner in schema["oneOf"])
    if fitting != 1:
        yield f"{path} must fit exactly one of the allowed forms, and fits {fitting}"


def _not(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if walk.fits(schema["not"], value):
        yield f"{path} has a form that is not allowed"


def _if(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    branch = schema.get("then" if walk.fits(schema["if"], value) else "else", True)
    yield from walk.problems(branch, value, path, walk)


def _items(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    """After the first ones, which `prefixItems` speaks of; draft 07 says both in one keyword."""
    if not isinstance(value, list | tuple):
        return
    rest = schema["items"]
    if isinstance(rest, list):
        for index, (inner, item) in enumerate(zip(rest, value, strict=False)):
            yield from walk.problems(inner, item, f"{path}[{index}]", walk)
        return
    first = len(schema.get("prefixItems", ()))
    for index in range(first, len(value)):
        yield from walk.problems(rest, value[index], f"{path}[{index}]", walk)


def _prefix_items(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if isinstance(value, list | tuple):
        for index, (inner, item) in enumerate(zip(schema["prefixItems"], value, strict=False)):
            yield from walk.problems(inner, item, f"{path}[{index}]", walk)


def _contains(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if isinstance(value, list | tuple):
        count = sum(walk.fits(schema["contains"], item) for item in value)
        if not schema.get("minContains", 1) <= count <= schema.get("maxContains", len(value)):
            yield f"{path} has {count} items of the asked form"


def _properties(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if isinstance(value, Mapping):
        for name, inner in schema["properties"].items():
            if name in value:
                yield from walk.problems(inner, value[name], f"{path}.{name}", walk)


def _pattern_properties(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if isinstance(value, Mapping):
        for pattern, inner in schema["patternProperties"].items():
            for name, item in value.items():
                if re.search(pattern, name):
                    yield from walk.problems(inner, item, f"{path}.{name}", walk)


def _additional(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if not isinstance(value, Mapping):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", ())
    for name, item in value.items():
        if name in known or any(re.search(pattern, name) for pattern in patterns):
            continue
        if schema["additionalProperties"] is False:
            yield f"{path}.{name} is unknown"
        else:
            yield from walk.problems(schema["additionalProperties"], item, f"{path}.{name}", walk)


def _property_names(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if isinstance(value, Mapping):
        for name in value:
            yield from walk.problems(schema["propertyNames"], name, f"the name {path}.{name}", walk)


def _dependent_schemas(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    if isinstance(value, Mapping):
        for name, inner in schema["dependentSchemas"].items():
            if name in value:
                yield from walk.problems(inner, value, path, walk)


def _dependencies(schema: Schema, value: Any, path: str, walk: Walk) -> Problems:
    """Draft 07's word for both kinds."""
    if isinstance(value, Mapping):
        for name, inner in schema["dependencies"].items():
            if name in value and isinstance(inner, list):
                yield from _required(inner, value, path)
            elif name in value:
                yield from walk.problems(inner, value, path, walk)


Applier = Callable[[Schema, Any, str, Walk], Problems]
APPLIERS: Final[dict[str, Applier]] = {
    "$ref": _ref,
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "items": _items,
    "prefixItems": _prefix_items,
    "contains": _contains,
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "propertyNames": _property_names,
    "dependentSchemas": _dependent_schemas,
    "dependencies": _dependencies,
}
