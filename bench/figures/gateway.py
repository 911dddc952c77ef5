"""A call to a unique agent through the gateway beside the same call straight to its socket."""

from __future__ import annotations

import asyncio
import math

import grpc.aio

from bench.bench import CALL_WITHIN_S, Bench
from bench.connection import agent_stub
from bench.line import Line, Result, Target
from bench.loops import Call
from bench.pairs import Way, interleave
from hyperfactory.v1 import agent_service_pb2 as ap

BLOCKS = 20
ROUTE_WITHIN_S = 2.0
"""By then Traefik has the agent's own route; before, the activator answers."""
HOW = (
    "Describe of one agent with mTLS to the end, once through Traefik and the relay, once over the agent's unix "
    "socket; both connections stay open. Same client for both, closed loop."
)


async def measure(bench: Bench) -> Result:
    """Latency of one caller, rate of 16."""
    agent = await bench.spawn()
    await asyncio.sleep(ROUTE_WITHIN_S)
    end = agent.endpoint
    async with (
        bench.caller.open(end.gateway, end.authority) as through,
        bench.caller.open(end.direct, end.authority) as direct,
    ):
        ours, floor = Way(_describe(bench, through)), Way(_describe(bench, direct))
        await interleave(bench, ours, floor, math.ceil(BLOCKS * bench.rounds / 20))
    await bench.disband(agent.crew)
    name = "direct mTLS over the unix socket"
    alone, together = Target(ratio_max=1.3), Target(ratio_min=0.9)
    title = "Describe through the gateway"
    return Result(
        "gateway",
        HOW,
        [
            Line(f"{title}, 1 caller", ours.latency, alone, floor.latency, name),
            Line(f"{title}, 16 callers", ours.rate, together, floor.rate, name, rate=True),
        ],
    )


def _describe(bench: Bench, channel: grpc.aio.Channel) -> Call:
    stub = agent_stub(channel)

    async def call() -> None:
        await stub.Describe(ap.DescribeRequest(), timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)

    return call
