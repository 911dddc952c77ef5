"""Make ids that are short, sortable by creation and DNS-safe."""

from __future__ import annotations

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: sorts as the numbers do."""
TIME_CHARS = 9
"""45 bits of milliseconds: good until the year 3084."""
RANDOM_CHARS = 7


def encode(number: int, chars: int) -> str:
    """The number's lowest `5 * chars` bits, most significant first."""
    return "".join(ALPHABET[(number >> (5 * i)) & 31] for i in reversed(range(chars)))


def make_id(prefix: str, now_ms: int, entropy: bytes) -> str:
    """`<prefix><time><random>`, as `c01k9x2m4qabcdefg`. `entropy` needs 5 bytes."""
    return prefix + encode(now_ms, TIME_CHARS) + encode(int.from_bytes(entropy[:5], "big"), RANDOM_CHARS)


def instance_id(uid: str, generation: int) -> str:
    """The name of an agent's sandbox in one generation: the same on every attempt."""
    return f"{uid}-g{generation}"
