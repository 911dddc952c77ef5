"""An agent is killed → its replacement is READY."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import grpc.aio

from bench.bench import CALL_WITHIN_S, Bench, attempt
from bench.line import Line, Result
from bench.samples import Samples
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import types_pb2 as tp

POOL = 4
HEALED_WITHIN_S = 30.0
HOW = (
    "SIGKILL to the instance's first process (host_pid) of a fresh agent, until WatchAgents through the gateway "
    "shows it READY with generation + 1; then a Describe by name through the gateway must come from the new "
    f"generation. Warm: the replacement comes from a pool of {POOL}. Cold: the pool is empty."
)


async def measure(bench: Bench) -> Result:
    """From the pool, then without one."""
    lines = await _kills(bench, "warm", POOL, bench.some(1))
    lines += await _kills(bench, "cold", 0, bench.some(0.5))
    return Result("heal", HOW, lines)


async def _kills(bench: Bench, kind: str, pool: int, rounds: int) -> list[Line]:
    ready, called, floor = Samples(), Samples(), Samples()
    await bench.set_pool(pool)
    for _ in range(rounds):
        agent = await bench.spawn()
        await bench.filled(pool)
        quiet = await bench.gate.wait()
        floor.add(await bench.floors.call_and_commit(), quiet=quiet)
        async with _watching(bench, agent) as seen, attempt(bench, ready, called) as timer:
            os.kill(agent.instance.host_pid, signal.SIGKILL)
            try:
                async with asyncio.timeout(HEALED_WITHIN_S):
                    successor = await seen
            except TimeoutError:
                ready.fail(f"not READY within {HEALED_WITHIN_S:g} s")
                continue
            timer.mark(ready)
            described = await bench.describe(successor)
            if described.generation == successor.generation:
                timer.mark(called)
            else:
                called.fail(f"generation {described.generation} answered for {successor.generation}")
        await bench.disband(agent.crew)
    name = f"killed → READY ({kind} replacement)"
    target = bench.targets.heal
    beside = "empty RPC + one commit"
    return [
        Line(name, ready, target, floor, beside),
        Line(f"{name} + first call", called, target, floor, beside),
    ]


@asynccontextmanager
async def _watching(bench: Bench, agent: tp.Agent) -> AsyncIterator[asyncio.Future[tp.Agent]]:
    """The agent once it is READY in a newer generation; the watch stands before the block begins."""
    request = fp.WatchAgentsRequest(filter=f"crew={agent.crew}")
    stream = bench.gateway.factory.WatchAgents(request, metadata=bench.caller.metadata)
    seen: asyncio.Future[tp.Agent] = asyncio.get_running_loop().create_future()
    synced = asyncio.Event()

    async def read() -> None:
        async for answer in stream:
            if answer.synced:
                synced.set()
            for found in answer.agents:
                newer = found.id == agent.id and found.generation > agent.generation
                if newer and found.state == tp.AGENT_STATE_READY and not seen.done():
                    seen.set_result(found)

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(_until_cancelled(read()))
        async with asyncio.timeout(CALL_WITHIN_S):
            await synced.wait()
        yield seen
        reader.cancel()
        stream.cancel()


async def _until_cancelled(reading: Awaitable[None]) -> None:
    try:
        await reading
    except grpc.aio.AioRpcError as error:
        if error.code().name != "CANCELLED":
            raise
