"""An agent with 1 MB of memory is sent to sleep, and woken."""

from __future__ import annotations

import uuid

from google.protobuf.struct_pb2 import Value

from bench.bench import CALL_WITHIN_S, Bench, attempt
from bench.connection import agent_stub
from bench.line import Line, Result
from bench.samples import Samples
from hyperfactory.v1 import agent_service_pb2 as ap
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import types_pb2 as tp

POOL = 4
KEYS, VALUE_BYTES = 16, 64 * 1024
HOW = (
    f"A fresh agent is given {KEYS} memories of {VALUE_BYTES // 1024} KiB. Hibernate: HibernateAgent through the "
    "gateway until the reply, that is, until its state is stored and read back. Wake: WakeAgent until the reply "
    f"READY, warm from a pool of {POOL} or cold without one; then one of the memories is read by the agent's name "
    "through the gateway on a new connection. The floor is what a new instance would need without a memory."
)


async def measure(bench: Bench) -> Result:
    """Both, woken from the pool and without one."""
    warm = await _rounds(bench, "warm", POOL, bench.some(1))
    cold = await _rounds(bench, "cold", 0, bench.some(0.5))
    return Result("hibernate", HOW, [*warm, *cold])


async def _rounds(bench: Bench, kind: str, pool: int, rounds: int) -> list[Line]:
    asleep, awake, called, floor = Samples(), Samples(), Samples(), Samples()
    await bench.set_pool(pool)
    for _ in range(rounds):
        agent = await bench.spawn()
        await _remember(bench, agent)
        async with attempt(bench, asleep) as timer:
            await _hibernate(bench, agent)
            timer.mark(asleep)
        await bench.filled(pool)
        quiet = await bench.gate.wait()
        floor.add(await bench.cold_floor(), quiet=quiet)
        async with attempt(bench, awake, called) as timer:
            await _wake(bench, agent)
            timer.mark(awake)
            await _recall(bench, agent)
            timer.mark(called)
        await bench.disband(agent.crew)
    target, beside = bench.targets.wake, bench.cold_floor_name
    return [
        Line(f"hibernate (pool {pool})", asleep, bench.targets.hibernate),
        Line(f"wake {kind} → reply", awake, target if kind == "warm" else bench.targets.none, floor, beside),
        Line(f"wake {kind} → reply + a memory read", called, bench.targets.none, floor, beside),
    ]


async def _remember(bench: Bench, agent: tp.Agent) -> None:
    value = Value(string_value="x" * VALUE_BYTES)
    async with bench.caller.open(agent.endpoint.gateway, agent.endpoint.authority) as channel:
        for number in range(KEYS):
            request = ap.PutMemoryRequest(key=f"k{number}", value=value)
            await agent_stub(channel).PutMemory(
                request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata
            )


async def _recall(bench: Bench, agent: tp.Agent) -> None:
    async with bench.caller.open(agent.endpoint.gateway, agent.endpoint.authority) as channel:
        answer = await agent_stub(channel).GetMemory(
            ap.GetMemoryRequest(key="k0"), timeout=CALL_WITHIN_S, metadata=bench.caller.metadata
        )
    if len(answer.value.string_value) != VALUE_BYTES:
        raise AssertionError(f"'{agent.name}' has forgotten")


async def _hibernate(bench: Bench, agent: tp.Agent) -> None:
    request = fp.HibernateAgentRequest(request_id=str(uuid.uuid4()), agent=agent.id)
    await bench.gateway.factory.HibernateAgent(request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)


async def _wake(bench: Bench, agent: tp.Agent) -> None:
    request = fp.WakeAgentRequest(request_id=str(uuid.uuid4()), agent=agent.id)
    await bench.gateway.factory.WakeAgent(request, timeout=CALL_WITHIN_S, metadata=bench.caller.metadata)
