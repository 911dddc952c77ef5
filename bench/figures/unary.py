"""GetAgent beside an empty grpc.aio handler with mTLS."""

from __future__ import annotations

import math

from bench.bench import CALL_WITHIN_S, Bench
from bench.line import Line, Result, Target
from bench.pairs import Way, interleave
from hyperfactory.v1 import factory_service_pb2 as fp

BLOCKS = 20
HOW = (
    "GetAgent straight to the factory's port, and the same request to a grpc.aio server with the same options, "
    "loop and certificates in a process of its own that answers with an empty message. Same client for both, "
    "closed loop. Client and server share the machine's cores, which flatters the ratio of the rates."
)


async def measure(bench: Bench) -> Result:
    """Latency of one caller, rate of 16."""
    agent = await bench.spawn()
    request = fp.GetAgentRequest(agent=agent.id)

    async def ours() -> None:
        await bench.direct.factory.GetAgent(request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)

    async def floor() -> None:
        await bench.floors.empty.GetAgent(request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)

    our_way, floor_way = Way(ours), Way(floor)
    await interleave(bench, our_way, floor_way, math.ceil(BLOCKS * bench.rounds / 20))
    await bench.disband(agent.crew)
    name = "empty handler with mTLS"
    # 0.6 of the handler's speed is 1/0.6 of its time.
    alone, together = Target(ratio_max=1 / 0.6), Target(ratio_min=0.6)
    return Result(
        "unary",
        HOW,
        [
            Line("GetAgent, 1 caller", our_way.latency, alone, floor_way.latency, name),
            Line("GetAgent, 16 callers", our_way.rate, together, floor_way.rate, name, rate=True),
        ],
    )
