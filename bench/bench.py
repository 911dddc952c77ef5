"""What every figure is given: a stack, a client, floors, and the acts that are measured."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict

from bench.connection import Caller, FactoryStubs, agent_stub
from bench.containers import docker_run
from bench.floors import Floors, bare_start, open_floors
from bench.quiet import QuietGate
from bench.samples import Samples
from bench.stack import Stack
from bench.targets import BY_DRIVER, Targets
from hyperfactory.v1 import agent_service_pb2 as ap
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import types_pb2 as tp
from wire.identity import IdentityFile

CALL_WITHIN_S = 60.0
FILL_WITHIN_S = 60.0
LOOK_S = 0.01


@dataclass(slots=True)
class Bench:
    """One run. `rounds` is how often a figure's sample is taken unless the figure is dear."""

    stack: Stack
    caller: Caller
    gateway: FactoryStubs
    direct: FactoryStubs
    floors: Floors
    rounds: int
    gate: QuietGate = field(default_factory=QuietGate)
    shared: AsyncExitStack = field(default_factory=AsyncExitStack)
    _hundred: tp.Crew | None = None

    @property
    def targets(self) -> Targets:
        """What this driver should reach."""
        return BY_DRIVER[self.stack.driver]

    @property
    def cold_floor_name(self) -> str:
        """What `cold_floor` measures."""
        return (
            "`docker run` of a bare server"
            if self.stack.driver == "docker"
            else "bare python grpc server start"
        )

    async def cold_floor(self, count: int = 1) -> float:
        """Milliseconds that so many new instances need at least, all at once."""
        return await (docker_run(count) if self.stack.driver == "docker" else bare_start(count))

    def some(self, part: float, least: int = 3) -> int:
        """So many rounds of a figure that is dearer than others."""
        return max(round(self.rounds * part), least)

    async def spawn(self) -> tp.Agent:
        """A READY agent in a crew of its own."""
        request = fp.SpawnAgentRequest(request_id=str(uuid.uuid4()), profile="generic")
        answer = await self.gateway.factory.SpawnAgent(
            request, timeout=CALL_WITHIN_S, metadata=self.caller.metadata
        )
        return answer.agent

    async def assemble(self, size: int, name: str = "bench") -> cp.AssembleCrewResponse:
        """A READY crew of so many."""
        members = [{"name": "worker", "profile": "generic", "replicas": size}]
        manifest = ParseDict({"name": name, "members": members}, cp.CrewManifest())
        request = cp.AssembleCrewRequest(request_id=str(uuid.uuid4()), manifest=manifest)
        return await self.gateway.crews.AssembleCrew(
            request, timeout=CALL_WITHIN_S, metadata=self.caller.metadata
        )

    async def disband(self, crew: str) -> None:
        """The crew, gone to the last key."""
        request = cp.DisbandCrewRequest(request_id=str(uuid.uuid4()), crew=crew)
        await self.gateway.crews.DisbandCrew(request, timeout=CALL_WITHIN_S, metadata=self.caller.metadata)

    async def describe(self, agent: tp.Agent) -> ap.AgentDescription:
        """An authenticated call to the agent by its name through the gateway, on a connection of its own."""
        async with self.caller.open(agent.endpoint.gateway, agent.endpoint.authority) as channel:
            answer = await agent_stub(channel).Describe(
                ap.DescribeRequest(), timeout=CALL_WITHIN_S, metadata=self.caller.metadata
            )
        return answer.description

    async def describe_all(self, agents: list[tp.Agent]) -> None:
        """The same to each of them at once."""
        async with asyncio.TaskGroup() as group:
            for agent in agents:
                group.create_task(self.describe(agent))

    async def set_pool(self, target: int) -> None:
        """Set the warm pool's size, and wait until it has it."""
        await self.settled()
        request = fp.UpdatePoolRequest(request_id=str(uuid.uuid4()), target=target)
        await self.gateway.factory.UpdatePool(request, timeout=CALL_WITHIN_S, metadata=self.caller.metadata)
        await self.filled(target)

    async def filled(self, target: int) -> None:
        """Wait until so many instances are warm and none is being made."""
        async with asyncio.timeout(FILL_WITHIN_S + target):
            while True:
                pool = await self._pool()
                if pool.ready == target and not pool.refilling:
                    return
                await asyncio.sleep(LOOK_S)

    async def settled(self) -> None:
        """Wait until the pool has its present size: what is being made while it shrinks would stay."""
        await self.filled((await self._pool()).target)

    async def _pool(self) -> fp.Pool:
        answer = await self.gateway.factory.GetPool(
            fp.GetPoolRequest(), timeout=CALL_WITHIN_S, metadata=self.caller.metadata
        )
        return answer.pools[0]

    async def hundred(self) -> tp.Crew:
        """A crew of 100 that several figures share; gone when the run ends."""
        if self._hundred is None:
            await self.set_pool(0)
            self._hundred = (await self.assemble(100, "hundred")).crew
            self.shared.push_async_callback(self.disband, self._hundred.id)
        return self._hundred


@dataclass(slots=True)
class Timer:
    """Marks of one sample, in milliseconds since it began."""

    quiet: bool
    since: float = field(default_factory=time.perf_counter)

    def mark(self, samples: Samples) -> None:
        """The sample has come so far."""
        samples.add((time.perf_counter() - self.since) * 1000, quiet=self.quiet)


@asynccontextmanager
async def attempt(bench: Bench, *measured: Samples) -> AsyncIterator[Timer]:
    """One sample, begun in a quiet moment; a failed call is counted, not raised."""
    timer = Timer(await bench.gate.wait())
    timer.since = time.perf_counter()
    try:
        yield timer
    except grpc.aio.AioRpcError as error:
        for samples in measured:
            samples.fail(f"{error.code().name}: {error.details()}")


@asynccontextmanager
async def open_bench(stack: Stack, rounds: int) -> AsyncIterator[Bench]:
    """Connect to the stack."""
    caller = Caller(IdentityFile(stack.home / "pki" / "operator"))
    told = stack.client
    direct_target = f"127.0.0.1:{stack.ports['factory']}"
    async with (
        open_floors(stack, caller) as floors,
        caller.open(told["endpoint"], told["authority"]) as through_gateway,
        caller.open(direct_target, told["authority"]) as direct,
        AsyncExitStack() as shared,
    ):
        yield Bench(
            stack, caller, FactoryStubs(through_gateway), FactoryStubs(direct), floors, rounds, shared=shared
        )
