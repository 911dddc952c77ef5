"""What an idle agent costs: memory of its own, and CPU of everything that keeps 100 of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from bench.bench import Bench
from bench.line import Line, Result, Target
from bench.samples import Samples

SETTLE_S = 3.0
WINDOW_S = 10.0
HOW = (
    "Proportional set size (smaps_rollup) of an agent's processes from pid 1 of its sandbox downwards, in a crew "
    "of 100. CPU: time that the scheduler gave to all processes of the stack over 10 s (agents, fork server, "
    "factory, watchdog with its probes, gateway, Traefik, Postgres, Valkey), in percent of one core: with 100 "
    "idle agents less the same without agents."
)


async def measure(bench: Bench) -> Result:
    """First the empty stack, then 100 agents."""
    await bench.set_pool(0)
    empty = [await _percent(bench, set()) for _ in range(bench.some(0.1, 2))]
    crew = await bench.hundred()
    memory = Samples("MB")
    for agent in crew.agents:
        pids = _descendants(agent.instance.host_pid)
        memory.add(sum(map(_pss_mb, pids)))
    roots = [agent.instance.host_pid for agent in crew.agents]
    agents_only = {pid for root in roots for pid in _descendants(root)}
    cpu, of_agents, base = Samples("% of a core"), Samples("% of a core"), Samples("% of a core")
    for before in empty:
        base.add(before[0])
    for _ in range(bench.some(0.1, 2)):
        everything, agents = await _percent(bench, agents_only)
        cpu.add(max(everything - base.at(50), 0))
        of_agents.add(agents)
    note = f"the empty stack: {base.at(50):.1f} % of a core"
    return Result(
        "idle",
        HOW,
        [
            Line("PSS of an idle agent", memory, Target(p50_max=8)),
            Line(
                "CPU of 100 idle agents, with everything that keeps them", cpu, Target(p50_max=2), note=note
            ),
            Line("of that, the agents' own processes", of_agents),
        ],
    )


async def _percent(bench: Bench, chosen: set[int]) -> tuple[float, float]:
    """Percent of a core that the stack uses now, and that the chosen processes use."""
    await asyncio.sleep(SETTLE_S)
    pids = bench.stack.processes()
    before, since = {pid: _cpu_s(pid) for pid in {*pids, *chosen}}, time.perf_counter()
    await asyncio.sleep(WINDOW_S)
    window_s = time.perf_counter() - since
    spent = {pid: max(_cpu_s(pid) - seconds, 0) for pid, seconds in before.items()}
    return _sum(spent.values(), window_s), _sum((spent[pid] for pid in chosen), window_s)


def _sum(seconds: Iterable[float], window_s: float) -> float:
    return sum(seconds) / window_s * 100


def _cpu_s(pid: int) -> float:
    """Seconds that the scheduler gave to the process's threads, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[0])
        except OSError:
            continue
    return total / 1e9


def _descendants(root: int) -> list[int]:
    found, frontier = [], [root]
    while frontier:
        pid = frontier.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            frontier += map(int, children.read_text().split())
    return found


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
