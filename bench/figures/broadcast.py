"""A broadcast to 100 agents until every receipt is there."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack

from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.bench import CALL_WITHIN_S, Bench, attempt
from bench.line import Line, Result, Target
from bench.samples import Samples
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import events_pb2

Mark = Callable[[Samples], None]
HOW = (
    "Broadcast through the gateway to a READY crew of 100, from the call to the summary; every agent must have "
    "ACKED. First receipt: the first response that carries any. The floor is a health Check to each of the same "
    "100 agents, all at once, over 100 mTLS connections to their sockets that stand open, from the same Python "
    "client."
)


async def measure(bench: Bench) -> Result:
    """In turn with the floor."""
    crew = await bench.hundred()
    done, first, floor = Samples(), Samples(), Samples()
    async with AsyncExitStack() as stack:
        stubs = []
        for agent in crew.agents:
            channel = bench.caller.open(agent.endpoint.direct, agent.endpoint.authority)
            await stack.enter_async_context(channel)
            stubs.append(health_pb2_grpc.HealthStub(channel))
        await _check_all(bench, stubs)
        for _ in range(bench.some(1.5)):
            quiet = await bench.gate.wait()
            floor.add(await _check_all(bench, stubs), quiet=quiet)
            async with attempt(bench, done, first) as timer:
                await _broadcast(bench, crew.id, timer.mark, first, done)
    name = "100 Check calls at once"
    return Result(
        "broadcast",
        HOW,
        [
            Line("broadcast to 100 → all receipts", done, Target(p50_max=60), floor, name),
            Line("broadcast to 100 → first receipts", first),
        ],
    )


async def _broadcast(bench: Bench, crew: str, mark: Mark, first: Samples, done: Samples) -> None:
    request = cp.BroadcastRequest(request_id=str(uuid.uuid4()), crew=crew, signal="PING")
    stream = bench.gateway.crews.Broadcast(request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)
    acked = 0
    async for answer in stream:
        if answer.receipts and not acked:
            mark(first)
        acked += sum(receipt.stage == events_pb2.RECEIPT_STAGE_ACKED for receipt in answer.receipts)
        if answer.HasField("completed"):
            if acked == answer.completed.targets:
                mark(done)
            else:
                done.fail(f"{acked} of {answer.completed.targets} agents acknowledged")


async def _check_all(bench: Bench, stubs: list[health_pb2_grpc.HealthStub]) -> float:
    since = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for stub in stubs:
            group.create_task(_check(bench, stub))
    return (time.perf_counter() - since) * 1000


async def _check(bench: Bench, stub: health_pb2_grpc.HealthStub) -> None:
    await stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)
