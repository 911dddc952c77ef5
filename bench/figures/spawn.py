"""Spawn → READY of one agent: cold with an empty pool, warm from a filled one."""

from __future__ import annotations

from bench.bench import Bench, attempt
from bench.line import Line, Result
from bench.samples import Samples

POOL = 4
HOW = (
    "SpawnAgent through the gateway with a generic profile. READY is the reply; then a Describe by the agent's "
    "name through the gateway on a new connection (TLS handshake included) proves it. Cold: pool of 0. Warm: "
    f"pool of {POOL}, refilled between samples. The agent is disbanded outside the timed part."
)


async def measure(bench: Bench) -> Result:
    """Both, each beside its floor."""
    return Result("spawn", HOW, [*await _cold(bench), *await _warm(bench)])


async def _cold(bench: Bench) -> list[Line]:
    reply, called, floor = Samples(), Samples(), Samples()
    await bench.set_pool(0)
    for _ in range(bench.some(1)):
        quiet = await bench.gate.wait()
        floor.add(await bench.cold_floor(), quiet=quiet)
        await _one(bench, reply, called)
    name = bench.cold_floor_name
    return [
        Line("cold spawn → reply", reply, bench.targets.cold, floor, name),
        Line("cold spawn → reply + first call", called, bench.targets.cold, floor, name),
    ]


async def _warm(bench: Bench) -> list[Line]:
    reply, called, floor = Samples(), Samples(), Samples()
    await bench.set_pool(POOL)
    for _ in range(bench.some(2)):
        await bench.filled(POOL)
        quiet = await bench.gate.wait()
        floor.add(await bench.floors.call_and_commit(), quiet=quiet)
        await _one(bench, reply, called)
    name = "empty RPC + one synchronous commit"
    return [
        Line("warm spawn → reply", reply, bench.targets.warm, floor, name),
        Line("warm spawn → reply + first call", called, bench.targets.warm, floor, name),
    ]


async def _one(bench: Bench, reply: Samples, called: Samples) -> None:
    async with attempt(bench, reply, called) as timer:
        agent = await bench.spawn()
        timer.mark(reply)
        await bench.describe(agent)
        timer.mark(called)
        await bench.disband(agent.crew)
