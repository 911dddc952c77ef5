"""Crews of 3 and of 10 → READY, cold and warm."""

from __future__ import annotations

from collections import defaultdict

from bench.bench import Bench, attempt
from bench.line import Line, Result, Target
from bench.samples import Samples
from hyperfactory.v1 import crew_service_pb2 as cp

HOW = (
    "AssembleCrew of one generic group through the gateway, waiting for READY; then a Describe to every member "
    "by name through the gateway, each on a new connection, all at once. Warm: the pool holds as many as the "
    "crew. The floor of cold is as many bare Python grpc servers (with Docker: each in a container) started at "
    "once, of warm an empty RPC + one commit. The specification asks for 10 s."
)


async def measure(bench: Bench) -> Result:
    """All four."""
    lines: list[Line] = []
    for size, kind in bench.targets.crews:
        lines += await _crews(bench, size, kind)
    return Result("crews", HOW, lines)


async def _crews(bench: Bench, size: int, kind: str) -> list[Line]:
    reply, called, floor = Samples(), Samples(), Samples()
    phases: defaultdict[str, Samples] = defaultdict(Samples)
    pool = size if kind == "warm" else 0
    await bench.set_pool(pool)
    for _ in range(bench.some(3 / size)):
        await bench.filled(pool)
        quiet = await bench.gate.wait()
        floor.add(await _floor(bench, size, kind), quiet=quiet)
        async with attempt(bench, reply, called) as timer:
            answer = await bench.assemble(size)
            timer.mark(reply)
            await bench.describe_all(list(answer.crew.agents))
            timer.mark(called)
            _take_phases(phases, answer.report)
            await bench.disband(answer.crew.id)
    note = "; ".join(f"{name} {samples.at(50):.1f}" for name, samples in phases.items())
    target = Target(p50_max=bench.targets.crews[size, kind])
    beside = "empty RPC + one commit" if kind == "warm" else f"{size} × {bench.cold_floor_name} at once"
    name = f"crew of {size} {kind}"
    return [
        Line(f"{name} → reply", reply, target, floor, beside, note=f"p50 of phases, ms: {note}"),
        Line(f"{name} → reply + first call to each", called, target, floor, beside),
    ]


async def _floor(bench: Bench, size: int, kind: str) -> float:
    return await (bench.floors.call_and_commit() if kind == "warm" else bench.cold_floor(size))


def _take_phases(phases: defaultdict[str, Samples], report: cp.AssemblyReport) -> None:
    for phase in report.phases:
        phases[phase.phase].add(phase.milliseconds)
    for member in report.members:
        for phase in member.phases:
            phases[f"member {phase.phase}"].add(phase.milliseconds)
