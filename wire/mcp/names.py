"""The names under which tools are known to the world: always prefixed, fit for every model's provider."""

from __future__ import annotations

import hashlib
import re
from typing import Final

NAME_MAX_CHARS: Final = 64
NAME_RE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
SEPARATOR: Final = "__"
HASH_CHARS: Final = 8

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")
_HASHED: Final = re.compile(r"_[0-9a-f]{8}\Z")


def public_name(agent: str, tool: str) -> str:
    """`<agent>__<tool>`: always prefixed, a function of these two names alone.

    An agent's name has no `_`, so that no two pairs share a plain name. Whatever cannot stand as it is (a longer
    one, foreign characters) and whatever looks as if it had been cut ends in 8 hex digits of its sha256: a cut
    name is never another's plain one.
    """
    whole = f"{agent}{SEPARATOR}{tool}"
    plain = _FOREIGN.sub("_", whole)
    if plain == whole and len(whole) <= NAME_MAX_CHARS and not _HASHED.search(whole):
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:HASH_CHARS]
    return f"{plain[: NAME_MAX_CHARS - HASH_CHARS - 1]}_{digest}"
