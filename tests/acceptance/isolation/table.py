"""What the adversary tried and what came of it, held against what docs/isolation.json says.

With HYPERFACTORY_ISOLATION_TABLE=write a run notes its column down instead; `scripts/isolation.py` prints it in
docs/security.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).parents[3] / "docs" / "isolation.json"
WRITE: Final = os.environ.get("HYPERFACTORY_ISOLATION_TABLE") == "write"
REFUSED: Final = "refused"
ALLOWED: Final = "works"
"""What an agent may do."""

# Names that hold what another machine or another run calls differently.
_PLACES: Final = (
    (re.compile(r"\b(host (?:tcp|udp)) [0-9a-f.:]+$"), r"\1, each address of the host"),
    (
        re.compile(r"(read) /\S*/(?:hfi\w+|secret|test_\w+\.py)\S*"),
        r"\1 a file of the factory or of the host",
    ),
    (re.compile(r"(?<=change )/\S*/python[\d.]*$"), "the interpreter"),
    (re.compile(r"(?<=change )/\S*/json/__init__\.py$"), "the standard library"),
    (re.compile(r"(?<=/proc/)\d+(?=/)"), "<pid>"),
    (re.compile(r"(?<=of )\d+$|(?<=ptrace )\d+$|(?<=readv )\d+$|(?<=getfd )\d+$"), "<pid>"),
)


def plain(attempt: str) -> str:
    """An attempt's name without what differs between machines."""
    for pattern, name in _PLACES:
        attempt = pattern.sub(name, attempt)
    return attempt


def outcomes(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Area → attempt → outcome; several targets of a kind are one attempt, refused only if all were."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        area, name = found.setdefault(row["area"], {}), plain(row["attempt"])
        outcome = ALLOWED if row["worked"] else REFUSED
        area[name] = outcome if area.get(name, outcome) == outcome else f"sometimes {ALLOWED}"
    return found


def hold(column: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """The published table says of this kind of sandbox what was found just now."""
    found = outcomes(rows)
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    if WRITE:
        table[column] = found
        FILE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        return
    published = table[column]
    other = {
        f"{area}: {name}": outcome
        for area, attempts in found.items()
        for name, outcome in attempts.items()
        if published.get(area, {}).get(name) != outcome
    }
    assert not other, f"docs/isolation.json is stale for '{column}': {other}"
