"""Read a crew manifest from JSON, naming each field that cannot be understood."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from hyperfactory.v1 import crew_service_pb2
from wire.errors import FieldViolation, Invalid

MANIFEST_MAX_BYTES = 256 * 1024
_UNKNOWN = re.compile(r'has no field named "(?P<name>[^"]+)" at "(?P<path>[^"]*)"')
_FAILED = re.compile(r"^Failed to parse (?P<name>\w+) field: (?P<why>.*)", re.DOTALL)
M = TypeVar("M", bound=Message)
_FAILURE_PREFIX = "MEMBER_FAILURE_"


def read_text(source: str) -> str:
    """Read a file, or standard input for `-`."""
    if source == "-":
        return sys.stdin.read(MANIFEST_MAX_BYTES + 1)
    try:
        with Path(source).open(encoding="utf-8") as file:
            return file.read(MANIFEST_MAX_BYTES + 1)
    except OSError as error:
        raise Invalid(f"cannot read manifest '{source}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"cannot read manifest '{source}': it is not UTF-8") from error


def parse(text: str) -> crew_service_pb2.CrewManifest:
    """Parse a manifest's JSON; unknown and repeated fields are refused by name."""
    if len(text.encode()) > MANIFEST_MAX_BYTES:
        raise _bad("manifest", f"is larger than {MANIFEST_MAX_BYTES // 1024} KiB")
    body = load_object(text, "manifest")
    return fill(_friendly(body), crew_service_pb2.CrewManifest(), "manifest")


def load_object(text: str, name: str) -> dict[str, Any]:
    """Parse JSON that must be an object, each key once."""
    try:
        body = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise _bad(name, f"is no JSON: {error.msg} at line {error.lineno} column {error.colno}") from error
    if not isinstance(body, dict):
        raise _bad(name, "must be a JSON object")
    return body


def fill(body: Any, message: M, name: str) -> M:
    """Fill a message from proto3 JSON; the error names the field by its path from `name`."""
    try:
        json_format.ParseDict(body, message)
    except json_format.ParseError as error:
        raise _explained(str(error), type(message).__name__, name) from error
    return message


def _explained(why: str, root: str, name: str) -> Invalid:
    """Turn the parser's sentence into a field path and a description."""
    unknown = _UNKNOWN.search(why)
    if unknown:
        path = name + unknown["path"].removeprefix(root)
        return _bad(f"{path}.{unknown['name']}", "is unknown")
    steps = [name]
    while failed := _FAILED.match(why):
        steps.append(failed["name"])
        why = failed["why"]
    return _bad(".".join(steps), f"cannot be read: {why.strip().rstrip('.')}")


def _friendly(body: dict[str, Any]) -> dict[str, Any]:
    """Accept what people write: a ttl in plain seconds, and the policy's words without their prefix."""
    ttl, policy = body.get("ttl"), body.get("policy")
    if isinstance(ttl, int | float) and not isinstance(ttl, bool):
        body = {**body, "ttl": f"{ttl}s"}
    for key in ("onMemberFailure", "on_member_failure"):
        word = policy.get(key) if isinstance(policy, dict) else None
        if isinstance(word, str) and not word.startswith(_FAILURE_PREFIX):
            body = {**body, "policy": {**body["policy"], key: _FAILURE_PREFIX + word}}
    return body


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _bad(twice, "is given twice")
    return body


def _bad(field: str, description: str) -> Invalid:
    return Invalid(f"cannot use '{field}': it {description}", violations=[FieldViolation(field, description)])
