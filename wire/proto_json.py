"""Read proto3 JSON strictly, and say by its path which field is wrong."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from wire.errors import FieldViolation, Invalid

_UNKNOWN = re.compile(r'has no field named "(?P<name>[^"]+)" at "(?P<path>[^"]*)"')
_FAILED = re.compile(r"^Failed to parse (?P<name>\w+) field: (?P<why>.*)", re.DOTALL)
_PYTHONS_WORDS = (
    (re.compile(r"invalid literal for int\(\) with base 10: "), "no whole number: "),
    (re.compile(r"could not convert string to float: "), "no number: "),
)
_DURATION = "google.protobuf.Duration"
M = TypeVar("M", bound=Message)


def load(text: str | bytes, name: str = "body") -> Any:
    """Any JSON value; each key of an object once, and no number that JSON does not know."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise bad(name, "is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise bad(name, f"is no JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of a thousand digits
        raise bad(name, "is no JSON that can be read") from error


def load_object(text: str | bytes, name: str = "body") -> dict[str, Any]:
    """JSON that must be an object."""
    body = load(text, name)
    if not isinstance(body, dict):
        raise bad(name, "must be a JSON object")
    return body


def fill(body: Any, message: M, name: str = "") -> M:
    """Fill a message from proto3 JSON; the error names the field by its path from `name`."""
    try:
        json_format.ParseDict(body, message)
    except json_format.ParseError as error:
        raise _explained(str(error), type(message).__name__, name) from error
    except Exception as error:  # whatever the parser says, the JSON was the caller's
        raise bad(name or "body", "cannot be read") from error
    return message


def relaxed(value: Any, kind: Any) -> Any:
    """Accept what people write: durations in plain seconds, and words of enums without their prefix."""
    if kind.full_name == _DURATION and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value}s"
    if kind.file.package.startswith("google.") or not isinstance(value, dict):
        return value
    fields = {name: field for field in kind.fields for name in (field.name, field.json_name)}
    return {key: _relaxed(item, fields[key]) if key in fields else item for key, item in value.items()}


def _relaxed(value: Any, field: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return value
    if isinstance(value, list) and field.is_repeated:
        return [_one(item, field) for item in value]
    return _one(value, field)


def _one(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return relaxed(value, field.message_type)
    if field.enum_type is not None and isinstance(value, str) and value not in field.enum_type.values_by_name:
        whole = field.enum_type.values[0].name.removesuffix("UNSPECIFIED") + value
        return whole if whole in field.enum_type.values_by_name else value
    return value


def bad(field: str, description: str) -> Invalid:
    """One field that cannot be used."""
    return Invalid(f"cannot use '{field}': it {description}", violations=[FieldViolation(field, description)])


def _explained(why: str, root: str, name: str) -> Invalid:
    """Turn the parser's sentence into a field path and a description."""
    unknown = _UNKNOWN.search(why)
    if unknown:
        path = name + unknown["path"].removeprefix(root)
        return bad(f"{path}.{unknown['name']}".lstrip("."), "is unknown")
    steps = [name] if name else []
    while failed := _FAILED.match(why):
        steps.append(failed["name"])
        why = failed["why"]
    for pattern, meaning in _PYTHONS_WORDS:
        why = pattern.sub(meaning, why)
    return bad(".".join(steps) or "body", f"cannot be read: {why.strip().rstrip('.')}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(twice, "is given twice")
    return body


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)
