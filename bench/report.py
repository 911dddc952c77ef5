"""Tell the figures: a table for the terminal, JSON for whoever compares runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import machine
from bench.line import Line, Result
from bench.quiet import QuietGate
from bench.samples import Samples
from factory_cli.leaks import Count

MIN_WIDTH = 150
HEAD = ("figure", "p50", "p90", "p99", "n", "ok", "floor p50", "ratio", "target", "met")


def table(console: Console, results: Sequence[Result]) -> None:
    """All lines; `~` marks those that were measured on a busy machine."""
    found = Table(*HEAD, title="Figures and their floors, measured in one run")
    for result in results:
        for line in result.lines:
            found.add_row(*_cells(line))
        found.add_section()
    console.print(found)


def closing(
    console: Console, gate: QuietGate, leaks: Sequence[Count], load: tuple[float, float, float]
) -> None:
    """How quiet it was, and what was left behind."""
    part = gate.quiet / max(gate.asked, 1)
    console.print(
        f"samples begun on a quiet machine: {gate.quiet} of {gate.asked} ({part:.0%}); the others are not "
        f"counted where enough remain (~ marks where not). Load average at the end: {_words(load)}."
    )
    left = [f"{count.name} {count.value}" for count in leaks if count.value]
    console.print(f"leaks after all: {', '.join(left) or '0'}")


def write(folder: Path, result: Result) -> None:
    """One figure as JSON."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(document(result), indent=1, ensure_ascii=False)
    (folder / f"{result.figure}.json").write_text(text + "\n")


def document(result: Result) -> dict[str, Any]:
    """A figure and everything needed to judge it."""
    return {
        "figure": result.figure,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "load_average_before": [round(load, 2) for load in result.load],
        "took_s": round(result.took_s, 1),
        "how": result.how,
        "lines": [_line(line) for line in result.lines],
    }


def summary(samples: Samples) -> dict[str, Any]:
    """Percentiles, counts and enough quantiles for a plot."""
    return {
        "unit": samples.unit,
        **{f"p{percent}": _round(samples.at(percent)) for percent in (50, 90, 99)},
        "min": _round(samples.at(0)),
        "max": _round(samples.at(100)),
        "n": len(samples.counted),
        "dropped_not_quiet": samples.dropped,
        "noisy": samples.noisy,
        "failures": len(samples.failures),
        "first_failures": samples.failures[:3],
        "success_rate": round(samples.success, 4),
        "quantiles": [_round(samples.at(percent)) for percent in range(0, 101, 2)],
    }


def number(value: float) -> str:
    """Three digits that matter."""
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def verdict(line: Line) -> str:
    """yes, NO, or nothing asked."""
    return {True: "yes", False: "NO", None: "–"}[line.met]


def _line(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "samples": summary(line.samples),
        "floor_name": line.floor_name,
        "floor": summary(line.floor) if line.floor is not None else None,
        "ratio": _round(line.ratio),
        "target": str(line.target),
        "met": line.met,
        "note": line.note,
    }


def _cells(line: Line) -> tuple[str, ...]:
    samples, floor = line.samples, line.floor
    style = {True: "green", False: "bold red", None: "dim"}[line.met]
    return (
        f"{line.name}{' ~' if samples.noisy else ''}",
        f"{number(samples.at(50))} {samples.unit}",
        number(samples.at(90)),
        number(samples.at(99)),
        f"{len(samples.counted)}" + (f" (-{samples.dropped})" if samples.dropped else ""),
        f"{samples.success:.0%}",
        f"{number(floor.at(50))} {line.floor_name}" if floor is not None else "–",
        number(line.ratio),
        str(line.target) or "–",
        f"[{style}]{verdict(line)}[/]",
    )


def _words(load: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.2f}" for value in load)


def _round(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.5g}")
