"""Turn request bytes into a request, or say what is wrong: malformed, unknown fields, broken constraints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from wire.errors import FactoryError, FieldViolation, Invalid

Validator = Callable[[Message], Sequence[FieldViolation]]
Deserializer = Callable[[Any], Any]


class RequestReader:
    """Reads the requests of one method."""

    __slots__ = ("_deserialize", "_method", "_strict", "_validate")

    def __init__(
        self, method: str, deserialize: Deserializer | None, validate: Validator | None, *, strict: bool
    ) -> None:
        self._method = method
        self._deserialize = deserialize
        self._validate = validate if strict else None
        self._strict = strict

    def __call__(self, raw: bytes) -> Any:
        if self._deserialize is None:
            return raw
        request = self._parse(raw)
        if self._strict:
            self._refuse_unknown(request, raw)
        if self._validate is not None and (found := self._validate(request)):
            raise Invalid(_sentence(found), violations=found)
        return request

    def _parse(self, raw: bytes) -> Any:
        assert self._deserialize is not None
        try:
            return self._deserialize(raw)
        except FactoryError:
            raise  # a reader that knows better what is wrong
        except Exception as error:  # whatever the parser says, the bytes were the caller's
            raise Invalid(f"request is no message of {self._method}", reason="MALFORMED_MESSAGE") from error

    def _refuse_unknown(self, request: Message, raw: bytes) -> None:
        size = request.ByteSize()
        # Comparing sizes costs a microsecond in C, however large the message; walking it does not.
        request.DiscardUnknownFields()
        if request.ByteSize() == size:
            return
        fresh = type(request).FromString(raw)
        found = [FieldViolation(path, "is no field of this message", "unknown") for path in unknown(fresh)]
        raise Invalid("request has unknown fields", violations=found[:20])


def unknown(message: Message, path: str = "") -> Iterator[str]:
    """Paths of fields that the contract does not know, by number."""
    for extra in UnknownFieldSet(message):  # type: ignore[attr-defined]
        yield f"{path}{extra.field_number}"
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        name = f"{path}{descriptor.name}"
        for key, child in _children(descriptor, value):
            yield from unknown(child, f"{name}{key}.")


def _children(descriptor: Any, value: Any) -> Iterator[tuple[str, Message]]:
    if descriptor.message_type.GetOptions().map_entry:
        if descriptor.message_type.fields_by_name["value"].message_type is not None:
            for key in value:
                yield f'["{key}"]', value[key]
    elif descriptor.is_repeated:
        for index, child in enumerate(value):
            yield f"[{index}]", child
    else:
        yield "", value


def _sentence(found: Sequence[FieldViolation]) -> str:
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{first.field or 'request'}: {first.description}{more}"
