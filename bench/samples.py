"""Samples of one quantity, and what may be said about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

QUIET_MIN = 5
"""With fewer quiet samples than this all are counted, and the line is marked as noisy."""


@dataclass(slots=True)
class Samples:
    """Values in one unit; each knows whether the machine was quiet when it began."""

    unit: str = "ms"
    values: list[tuple[float, bool]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, value: float, *, quiet: bool = True) -> None:
        """One more."""
        self.values.append((value, quiet))

    def fail(self, why: str) -> None:
        """One attempt that gave no value."""
        self.failures.append(why)

    @property
    def noisy(self) -> bool:
        """Too few quiet samples: those below are of a busy machine."""
        return sum(quiet for _, quiet in self.values) < min(QUIET_MIN, len(self.values))

    @property
    def counted(self) -> list[float]:
        """What the percentiles are taken of, in order."""
        return sorted(value for value, quiet in self.values if quiet or self.noisy)

    @property
    def dropped(self) -> int:
        """Samples left out because the machine was busy when they began."""
        return len(self.values) - len(self.counted)

    @property
    def success(self) -> float:
        """The part of all attempts that gave a value."""
        attempts = len(self.values) + len(self.failures)
        return len(self.values) / attempts if attempts else 0.0

    def at(self, percent: float) -> float:
        """The percentile, by nearest rank; NaN of nothing."""
        return percentile(self.counted, percent)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent are not above; NaN of nothing."""
    if not ordered:
        return math.nan
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]
