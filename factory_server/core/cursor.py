"""Cursors: opaque, bound to what they point into, refused elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from factory_server.core.errors import FieldViolation, Invalid

DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class CursorCodec:
    """Signs and checks cursors with a secret shared by all replicas."""

    secret: bytes

    def encode(self, scope: str, position: str) -> str:
        """A cursor at `position` of `scope` (kind, crew and filter in one string)."""
        body = position.encode()
        return base64.urlsafe_b64encode(self._sign(scope, body) + body).decode().rstrip("=")

    def decode(self, scope: str, cursor: str, field: str = "cursor") -> str:
        """The position. Invalid (CURSOR_INVALID) for a cursor of another scope, or not made here."""
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (binascii.Error, ValueError):
            raise _foreign(field) from None
        body = raw[DIGEST_BYTES:]
        if raw[:DIGEST_BYTES] != self._sign(scope, body):
            raise _foreign(field)
        return body.decode()

    def _sign(self, scope: str, body: bytes) -> bytes:
        return hashlib.blake2b(
            scope.encode() + b"\0" + body, key=self.secret, digest_size=DIGEST_BYTES
        ).digest()


def _foreign(field: str) -> Invalid:
    text = "is of another list, crew or filter, or was not made here"
    return Invalid(
        f"cannot continue: the {field} {text}",
        reason="CURSOR_INVALID",
        violations=[FieldViolation(field, text, "CURSOR_INVALID")],
    )
