"""Two ways of one call beside each other: one caller's latency, and the rate of 16 callers."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.bench import Bench
from bench.loops import Call, latencies, rate
from bench.samples import Samples

CALLERS = 16
ALONE = 50
TOGETHER = 480
WARM_UP = 100


@dataclass(slots=True)
class Way:
    """One way of a call."""

    call: Call
    latency: Samples = field(default_factory=Samples)
    rate: Samples = field(default_factory=lambda: Samples("calls/s"))


async def interleave(bench: Bench, ours: Way, floor: Way, rounds: int) -> None:
    """Blocks of both in turn, so that a change of the machine's mood touches both."""
    for way in (ours, floor):
        await rate(way.call, CALLERS, WARM_UP)
    for turn in range(rounds):
        for way in (ours, floor) if turn % 2 else (floor, ours):
            quiet = await bench.gate.wait()
            await latencies(way.call, ALONE, way.latency, quiet=quiet)
            quiet = await bench.gate.wait()
            way.rate.add(await rate(way.call, CALLERS, TOGETHER), quiet=quiet)
