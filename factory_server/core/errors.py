"""The native errors, as the core speaks them."""

from wire.errors import (
    AlreadyExists,
    Denied,
    Exhausted,
    FactoryError,
    FieldViolation,
    Invalid,
    NotFound,
    OutOfRange,
    Refused,
    Stale,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

__all__ = [
    "AlreadyExists",
    "Denied",
    "Exhausted",
    "FactoryError",
    "FieldViolation",
    "Invalid",
    "NotFound",
    "OutOfRange",
    "Refused",
    "Stale",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]
