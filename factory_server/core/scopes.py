"""Scopes of tokens in their order: each reaches what the narrower ones reach."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SCOPES: Final = ("reviewer", "coder", "admin")
"""The narrowest first."""


def width(scope: str) -> int:
    """Wider scopes have higher numbers; one that we do not know is wider than all."""
    return SCOPES.index(scope) if scope in SCOPES else len(SCOPES)


def widest(scopes: Iterable[str]) -> str:
    """The widest that we know of these; empty for none."""
    return max((scope for scope in scopes if scope in SCOPES), key=width, default="")


def by_effect(*, read_only: bool) -> str:
    """The least scope for what changes things, or does not."""
    return "reviewer" if read_only else "coder"
