"""One line of the report: what was measured, its floor, and what it should be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bench.samples import Samples


@dataclass(frozen=True, slots=True)
class Target:
    """Bounds of percentiles, of the rate or of the ratio to the floor; None: not asked."""

    p50_max: float | None = None
    p99_max: float | None = None
    p50_min: float | None = None
    ratio_max: float | None = None
    ratio_min: float | None = None
    slack: float = 0.0
    """Added to what `ratio_max` allows, in the samples' unit."""

    def __str__(self) -> str:
        parts = {
            "p50 ≤": self.p50_max,
            "p99 ≤": self.p99_max,
            "≥": self.p50_min,
            "ratio ≤": self.ratio_max,
            "ratio ≥": self.ratio_min,
        }
        said = ", ".join(f"{name} {bound:g}" for name, bound in parts.items() if bound is not None)
        return f"{said} + {self.slack:g}" if self.slack else said


@dataclass(slots=True)
class Line:
    """What was measured. `rate`: more is better, and the ratio says what part of the floor's rate it is."""

    name: str
    samples: Samples
    target: Target = field(default_factory=Target)
    floor: Samples | None = None
    floor_name: str = ""
    rate: bool = False
    note: str = ""

    @property
    def ratio(self) -> float:
        """p50 beside the floor's p50; NaN without one."""
        if self.floor is None or not self.floor.counted or not self.samples.counted:
            return math.nan
        return self.samples.at(50) / self.floor.at(50)

    def _ratio_without(self, slack: float) -> float:
        if not slack or self.floor is None or not self.floor.counted or not self.samples.counted:
            return self.ratio
        return (self.samples.at(50) - slack) / self.floor.at(50)

    @property
    def met(self) -> bool | None:
        """Whether every bound holds; None where none is set."""
        target = self.target
        bounds = (
            (target.p50_max, self.samples.at(50), 1),
            (target.p99_max, self.samples.at(99), 1),
            (target.p50_min, self.samples.at(50), -1),
            (target.ratio_max, self._ratio_without(target.slack), 1),
            (target.ratio_min, self.ratio, -1),
        )
        asked = [found * sign <= bound * sign for bound, found, sign in bounds if bound is not None]
        return all(asked) and self.samples.success == 1.0 if asked else None


@dataclass(slots=True)
class Result:
    """One figure: its lines, and how it was measured."""

    figure: str
    how: str
    lines: list[Line]
    load: tuple[float, float, float] = (0.0, 0.0, 0.0)
    took_s: float = 0.0
