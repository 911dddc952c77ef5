"""A crew of 100 → READY, cold and warm."""

from __future__ import annotations

from bench.bench import Bench, attempt
from bench.line import Line, Result, Target
from bench.samples import Samples

SIZE = 100
TARGETS_MS = {"cold": 4000, "warm": 1000}
HOW = (
    "AssembleCrew of 100 through the gateway until READY; the best published peers need 540 ms (microVM clones "
    "on 96 cores) and 920 ms (pooled, identical copies)."
)


async def measure(bench: Bench) -> Result:
    """A few of each: they are dear."""
    return Result("hundred", HOW, [await _crews(bench, kind) for kind in TARGETS_MS])


async def _crews(bench: Bench, kind: str) -> Line:
    took = Samples()
    pool = SIZE if kind == "warm" else 0
    await bench.set_pool(pool)
    for _ in range(bench.some(0.1)):
        await bench.filled(pool)
        async with attempt(bench, took) as timer:
            answer = await bench.assemble(SIZE, "century")
            timer.mark(took)
            await bench.disband(answer.crew.id)
    await bench.set_pool(0)
    return Line(f"crew of 100 {kind} → reply", took, Target(p50_max=TARGETS_MS[kind]))
