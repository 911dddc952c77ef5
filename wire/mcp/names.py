"""The names under which tools are known to the world: always prefixed, fit for every model's provider."""

from __future__ import annotations

import hashlib
import re
from typing import Final

NAME_MAX_CHARS: Final = 64
NAME_RE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
SEPARATOR: Final = "__"
HASH_CHARS: Final = 8


def public_name(agent: str, tool: str) -> str:
    """`<agent>__<tool>`; a longer one is cut and ends in 8 hex digits of its sha256."""
    whole = f"{agent}{SEPARATOR}{tool}"
    if len(whole) <= NAME_MAX_CHARS:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:HASH_CHARS]
    return f"{whole[: NAME_MAX_CHARS - HASH_CHARS - 1]}_{digest}"
