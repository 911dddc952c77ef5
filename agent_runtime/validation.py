"""Check requests against the contract's constraints without protovalidate, whose engine outweighs this runtime.

It knows the rules that AgentService uses; a test walks the contract and compares the verdicts with
protovalidate's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from wire.errors import FieldViolation

VIOLATIONS_MAX: Final = 20
NANOS: Final = 1_000_000_000

Check = Callable[[Any], Iterator[str]]


def violations(message: Message) -> Sequence[FieldViolation]:
    """What is wrong with a request, one violation a field."""
    found = []
    for violation in _walk(message, ""):
        found.append(violation)
        if len(found) == VIOLATIONS_MAX:
            break
    return found


def learn(service: ServiceDescriptor) -> None:
    """Read the constraints of a service's requests before the first of them comes."""
    for method in service.methods:
        _plan(method.input_type)


def _walk(message: Message, path: str) -> Iterator[FieldViolation]:
    for field, check, inner in _plan(message.DESCRIPTOR):
        name = f"{path}{field.name}"
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if check is not None:
            yield from (FieldViolation(name, problem, "constraint") for problem in check(value))
        if inner and field.is_repeated:
            for index, item in enumerate(value):
                yield from _walk(item, f"{name}[{index}].")
        elif inner:
            yield from _walk(value, f"{name}.")


@functools.cache
def _plan(descriptor: Descriptor) -> list[tuple[FieldDescriptor, Check | None, bool]]:
    """The fields of a message that need a look: their check, and whether their own fields have any."""
    plan = []
    for field in descriptor.fields:
        check, inner = _check_of(field), _has_rules(field)
        if check is not None or inner:
            plan.append((field, check, inner))
    return plan


def _has_rules(field: FieldDescriptor) -> bool:
    kind = field.message_type
    if kind is None or kind.file.package.startswith("google.") or kind.GetOptions().map_entry:
        return False
    return bool(_plan(kind))


def _check_of(field: FieldDescriptor) -> Check | None:
    options: Any = field.GetOptions()
    if not options.HasExtension(validate_pb2.field):
        return None
    rules: Any = options.Extensions[validate_pb2.field]
    if rules.WhichOneof("type") == "enum" and field.enum_type is not None:
        return functools.partial(_enum, rules.enum, frozenset(field.enum_type.values_by_number))
    return _check(rules)


def _check(rules: Any) -> Check | None:
    kind = rules.WhichOneof("type")
    if kind is None:
        return None
    bounds = getattr(rules, kind)
    match kind:
        case "string":
            return functools.partial(_string, bounds, re.compile(bounds.pattern) if bounds.pattern else None)
        case "int32" | "int64" | "double":
            return functools.partial(_number, bounds)
        case "duration":
            return functools.partial(_duration, bounds)
        case "repeated":
            return functools.partial(_repeated, bounds, _check(bounds.items))
        case "map":
            return functools.partial(_map, bounds, _check(bounds.keys), _check(bounds.values))
        case _:
            raise ValueError(f"cannot check rules of kind '{kind}'")


def _string(bounds: Any, pattern: re.Pattern[str] | None, value: str) -> Iterator[str]:
    if len(value) < bounds.min_len:
        yield f"must have at least {bounds.min_len} characters"
    if bounds.HasField("max_len") and len(value) > bounds.max_len:
        yield f"must have at most {bounds.max_len} characters"
    if pattern is not None and not pattern.search(value):
        yield f"must match {bounds.pattern}"
    allowed = getattr(bounds, "in")
    if allowed and value not in allowed:
        yield f"must be one of {', '.join(repr(item) for item in allowed)}"


def _number(bounds: Any, value: float) -> Iterator[str]:
    # Written so that NaN, which is neither, is refused.
    if bounds.HasField("gte") and not value >= bounds.gte:
        yield f"must be at least {bounds.gte}"
    if bounds.HasField("lte") and not value <= bounds.lte:
        yield f"must be at most {bounds.lte}"


def _enum(bounds: Any, known: frozenset[int], value: int) -> Iterator[str]:
    if bounds.defined_only and value not in known:
        yield "must be a value that the contract names"


def _duration(bounds: Any, value: Any) -> Iterator[str]:
    length = _nanos(value)
    if bounds.HasField("gte") and length < _nanos(bounds.gte):
        yield f"must be at least {_nanos(bounds.gte) / NANOS:g} s"
    if bounds.HasField("lte") and length > _nanos(bounds.lte):
        yield f"must be at most {_nanos(bounds.lte) / NANOS:g} s"


def _nanos(duration: Any) -> int:
    return int(duration.seconds) * NANOS + int(duration.nanos)


def _repeated(bounds: Any, check: Check | None, values: Sequence[Any]) -> Iterator[str]:
    if len(values) < bounds.min_items:
        yield f"must have at least {bounds.min_items} items"
    if bounds.HasField("max_items") and len(values) > bounds.max_items:
        yield f"must have at most {bounds.max_items} items"
    if check is None:
        return
    for index, value in enumerate(values):
        yield from (f"item {index} {problem}" for problem in check(value))


def _map(bounds: Any, key_check: Check | None, value_check: Check | None, values: Any) -> Iterator[str]:
    if bounds.HasField("max_pairs") and len(values) > bounds.max_pairs:
        yield f"must have at most {bounds.max_pairs} pairs"
    for key, value in values.items():
        if key_check:
            yield from (f"key {key[:40]!r} {problem}" for problem in key_check(key))
        if value_check:
            yield from (f"value of {key[:40]!r} {problem}" for problem in value_check(value))
