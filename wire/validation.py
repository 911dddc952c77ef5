"""Check requests against the constraints in the contract (protovalidate); for servers that can afford it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import protovalidate
from google.protobuf.message import Message

from wire.errors import FieldViolation


class RequestValidator:
    """Callable that lists what is wrong with a request; compiled rules are kept per message type."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def __call__(self, message: Message) -> Sequence[FieldViolation]:
        return [_violation(found.proto) for found in self._validator.collect_violations(message)]


def _violation(found: Any) -> FieldViolation:
    path = "".join(_element(element) for element in found.field.elements) if found.field else ""
    return FieldViolation(path.lstrip("."), found.message or found.rule_id, found.rule_id)


def _element(element: Any) -> str:
    subscript = element.subscript
    if subscript is None:
        return f".{element.field_name}"
    value = json.dumps(subscript.value) if isinstance(subscript.value, str) else str(subscript.value).lower()
    return f".{element.field_name}[{value}]"
