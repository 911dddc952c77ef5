"""Print in docs/security.md what the isolation adversary tried, as its tests noted it; `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

from lifecycle import run  # noqa: E402

PAGE = ROOT / "docs" / "security.md"
FACTS = ROOT / "docs" / "isolation.json"
WORKS = "works"

Column = dict[str, dict[str, str]]


def summary(column: Column, area: str) -> str:
    """How much of an area was refused."""
    attempts = column.get(area, {})
    worked = sorted(name for name, outcome in attempts.items() if outcome == WORKS)
    refused = sum(outcome == "refused" for outcome in attempts.values())
    return f"{refused} refused" + (f"; works, as it may: {', '.join(worked)}" if worked else "")


def render() -> str:
    """A row an area, a column a kind of sandbox, and the attempts by name below."""
    columns: dict[str, Column] = json.loads(FACTS.read_text())
    areas = sorted({area for column in columns.values() for area in column})
    lines = [f"| area | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    lines += [
        f"| {area} | {' | '.join(summary(column, area) for column in columns.values())} |" for area in areas
    ]
    for area in areas:
        names = sorted({name for column in columns.values() for name in column.get(area, {})})
        told = [_told(columns, area, name) for name in names]
        lines += ["", f"**{area}**: {'; '.join(told)}."]
    return "\n".join(lines)


def _told(columns: dict[str, Column], area: str, name: str) -> str:
    """An attempt, and who was not asked, where it makes no sense."""
    asked = [title for title, column in columns.items() if name in column.get(area, {})]
    text = name.replace("|", "\\|").replace("<", "&lt;")
    return text if len(asked) == len(columns) else f"{text} (only {' / '.join(asked)})"


if __name__ == "__main__":
    sys.exit(run(PAGE, render, "scripts/isolation.py"))
