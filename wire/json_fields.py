"""Fields of somebody's JSON, each of its kind or `Invalid` by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wire.errors import FieldViolation, Invalid


def text(found: Mapping[str, Any], name: str, path: str) -> str:
    """A string, or nothing."""
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise bad(f"{path}.{name}".lstrip("."), "must be a string")
    return value or ""


def flag(found: Mapping[str, Any], name: str) -> bool:
    """A boolean, or nothing."""
    value = found.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(name, "must be true or false")
    return bool(value)


def an_object(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object, or nothing."""
    value = found.get(name)
    if value is not None and not isinstance(value, dict):
        raise bad(name, "must be an object")
    return value or {}


def a_list(found: Mapping[str, Any], name: str, path: str = "") -> Sequence[Any]:
    """A list, or nothing."""
    value = found.get(name)
    if value is not None and not isinstance(value, list):
        raise bad(f"{path}.{name}".lstrip("."), "must be a list")
    return value or ()


def bad(path: str, why: str) -> Invalid:
    """What is wrong with which field."""
    return Invalid(f"{path} {why}", violations=[FieldViolation(path, why)])
