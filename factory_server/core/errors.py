"""The native errors, as the core speaks them."""

from wire.errors import (
    AlreadyExists,
    Denied,
    DigestMismatch,
    Exhausted,
    FactoryError,
    FieldViolation,
    Invalid,
    NotFound,
    OutOfRange,
    Refused,
    SkillRefused,
    Stale,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

__all__ = [
    "AlreadyExists",
    "Denied",
    "DigestMismatch",
    "Exhausted",
    "FactoryError",
    "FieldViolation",
    "Invalid",
    "NotFound",
    "OutOfRange",
    "Refused",
    "SkillRefused",
    "Stale",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]
