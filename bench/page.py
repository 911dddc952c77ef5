"""One page with every figure's plot: self-contained HTML with inline SVG, made from the JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 560, 130, 52, 22
OURS, FLOOR = "#2563eb", "#9ca3af"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#111}
h2{margin-top:2.5rem}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .6rem;
border-bottom:1px solid #e5e7eb}td.n{text-align:right;font-variant-numeric:tabular-nums}.yes{color:#15803d}
.no{color:#b91c1c;font-weight:600}.how,.note{color:#4b5563}figure{margin:.5rem 1rem .5rem 0;display:inline-block}
figcaption{font-size:13px}svg text{font:11px system-ui,sans-serif;fill:#4b5563}
"""


def write(folder: Path) -> Path:
    """Write index.html from the figures that lie in the folder."""
    figures = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    body = "".join(map(_figure, figures))
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Hyper Agent Factory: figures</title>"
        f"<style>{STYLE}</style><h1>Figures</h1><p>Blue: measured; grey: the floor of the same run. Each plot "
        "is a distribution: how large a part of the samples (upwards) stayed below a value (to the right).</p>"
        f"{body}</html>\n"
    )
    page = folder / "index.html"
    page.write_text(text)
    return page


def _figure(figure: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in figure["machine"].items())
    load = " ".join(map(str, figure["load_average_before"]))
    rows = "".join(map(_row, figure["lines"]))
    plots = "".join(map(_plot, figure["lines"]))
    notes = "".join(
        f"<p class=note>{escape(line['name'])}: {escape(line['note'])}</p>"
        for line in figure["lines"]
        if line["note"]
    )
    return (
        f"<h2>{escape(figure['figure'])}</h2><p class=how>{escape(figure['how'])}</p>"
        "<table><tr><th>figure<th>unit<th>p50<th>p90<th>p99<th>n<th>not quiet<th>success<th>floor p50<th>ratio"
        f"<th>target<th>met</tr>{rows}</table>{notes}{plots}"
        f"<p class=note>{escape(figure['date'])}; {escape(facts)}; load average before: {escape(load)}</p>"
    )


def _row(line: dict[str, Any]) -> str:
    samples, floor = line["samples"], line["floor"]
    met = {True: "<td class=yes>yes", False: "<td class=no>no", None: "<td>–"}[line["met"]]
    beside = f"{_text(floor['p50'])} ({escape(line['floor_name'])})" if floor else "–"
    numbers = "".join(f"<td class=n>{_text(samples[name])}" for name in ("p50", "p90", "p99", "n"))
    noisy = " (noisy)" if samples["noisy"] else ""
    return (
        f"<tr><td>{escape(line['name'])}{noisy}<td>{escape(samples['unit'])}{numbers}"
        f"<td class=n>{samples['dropped_not_quiet']}<td class=n>{samples['success_rate']:.1%}"
        f"<td>{beside}<td class=n>{_text(line['ratio'])}<td>{escape(line['target'] or '–')}{met}</tr>"
    )


def _plot(line: dict[str, Any]) -> str:
    ours = line["samples"]["quantiles"]
    floor = line["floor"]["quantiles"] if line["floor"] else []
    values = [value for value in (*ours, *floor) if value is not None]
    if not values:
        return ""
    right = max(values) * 1.05 or 1.0
    curves = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{_points(curve, right)}"/>'
        for curve, colour in ((floor, FLOOR), (ours, OURS))
        if curve
    )
    unit = line["samples"]["unit"]
    ticks = "".join(_tick(right * i / 4, right, unit) for i in range(5))
    return (
        f"<figure><svg width={WIDTH} height={HEIGHT + BOTTOM} role=img><g>{_grid()}{ticks}{curves}</g></svg>"
        f"<figcaption>{escape(line['name'])}, {escape(unit)}</figcaption></figure>"
    )


def _points(curve: Sequence[float | None], right: float) -> str:
    steps = len(curve) - 1
    return " ".join(
        f"{_x(value, right):.1f},{_y(i / steps):.1f}" for i, value in enumerate(curve) if value is not None
    )


def _grid() -> str:
    return "".join(
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{_y(part):.0f}" y2="{_y(part):.0f}" stroke="#e5e7eb"/>'
        f'<text x="4" y="{_y(part) + 4:.0f}">{part:.0%}</text>'
        for part in (0.0, 0.5, 0.99)
    )


def _tick(value: float, right: float, unit: str) -> str:
    anchor = "end" if value == right else "middle"
    return f'<text x="{_x(value, right):.0f}" y="{HEIGHT + 16}" text-anchor="{anchor}">{_text(value)}</text>'


def _x(value: float, right: float) -> float:
    return LEFT + value / right * (WIDTH - LEFT)


def _y(part: float) -> float:
    return 6 + (1 - part) * (HEIGHT - 8)


def _text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
