"""Bases: trees of software that the operator provides, shown read-only to the sandboxes that ask for them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from factory_server.core.errors import Invalid

PLAIN: Final = "python"
"""The runtime alone; every other base is a directory of that name."""
INSIDE: Final = "/opt/base"
"""Where a sandbox sees its base, whatever its name: software may be built for one place only."""
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")


def find(bases: Path, name: str) -> Path | None:
    """The tree of a base; None where there is none. A link is none: what it leads to, a sandbox cannot see."""
    tree = bases / name
    return tree if _NAME.fullmatch(name) and tree.is_dir() and not tree.is_symlink() else None


def missing(instance: str, name: str, bases: Path) -> Invalid:
    """The error for a base that nobody has built."""
    return Invalid(f"cannot create '{instance}': there is no base '{name}' in {bases}")


def joined(image: str, tree: Path) -> str:
    """One digest for an image and the tree shown in it; a tree that no script of ours built has only its name."""
    note = tree / ".digest"
    stamp = note.read_text() if note.is_file() else tree.name
    return "sha256:" + hashlib.sha256(f"{image}\n{stamp}".encode()).hexdigest()
