"""What the figures should be, by the driver that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.line import Target

NONE = Target()


@dataclass(frozen=True, slots=True)
class Targets:
    """One driver's."""

    cold: Target
    warm: Target
    crews: Mapping[tuple[int, str], float]
    """p50 in ms, by size and kind."""
    heal: Target
    hibernate: Target
    wake: Target
    none: Target = NONE


NAMESPACES = Targets(
    cold=Target(p50_max=40, p99_max=150),
    warm=Target(p50_max=12, p99_max=50),
    crews={(3, "warm"): 30, (3, "cold"): 120, (10, "warm"): 80, (10, "cold"): 300},
    heal=Target(p50_max=80, p99_max=400),
    hibernate=Target(p50_max=25),
    wake=Target(p50_max=35),
)
DOCKER = Targets(
    cold=Target(ratio_max=1.3, slack=150),
    warm=Target(p50_max=120, p99_max=400),
    crews={(3, "warm"): 250, (3, "cold"): 1500, (10, "warm"): 700, (10, "cold"): 4000},
    heal=Target(p50_max=500, p99_max=1500),
    hibernate=Target(p50_max=300),
    wake=Target(p50_max=300),
)
BY_DRIVER = {"namespaces": NAMESPACES, "docker": DOCKER}
