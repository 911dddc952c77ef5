"""Load named SQL: each `-- name: xyz` in queries/*.sql opens a statement, known by that name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources

_NAME_RE = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def parse(text: str) -> dict[str, bytes]:
    """Split a file into its statements."""
    parts = _NAME_RE.split(text)
    return {
        name: body.strip().rstrip(";").encode() for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def load() -> Mapping[str, bytes]:
    """Read every query of the package; a name given twice is a defect."""
    found: dict[str, bytes] = {}
    for file in sorted(resources.files(__package__).joinpath("queries").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            fresh = parse(file.read_text(encoding="utf-8"))
            if twice := found.keys() & fresh.keys():
                raise ValueError(f"queries named twice: {sorted(twice)}")
            found.update(fresh)
    return found


QUERIES = load()
