"""Hibernation end to end: idle agents leave nothing but their state, and come back whole when wanted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.struct_pb2 import Value
from running import Client, Running, connected, credentials_of, request_id, running_stack, token_of

from embedded.postgres import EmbeddedPostgres
from factory_cli import leaks
from hyperfactory.v1 import agent_service_pb2 as ap
from hyperfactory.v1 import agent_service_pb2_grpc, types_pb2
from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import profile_service_pb2 as pp

pytestmark = pytest.mark.timeout(180)

WITHIN_S = 20.0
CALL_S = 15.0
HEARD_S = 1.0
"""An agent's processes are stopped so long after it is said to be frozen."""
STILL_S = 0.5
SLEEPY = "sleepy"
KEY = "answer"


@pytest.fixture(scope="module")
def fragile() -> Iterator[Running]:
    """A stack of this file's own: its factory is killed, and its figures are about nobody else."""
    with running_stack("hfz") as stack:
        yield stack


@pytest.fixture
async def client(fragile: Running) -> AsyncIterator[Client]:
    async with connected(fragile) as connection:
        profile = types_pb2.Profile(name=SLEEPY)
        profile.spec.idle_ttl.FromSeconds(1)
        create = pp.CreateProfileRequest(request_id=request_id(), profile=profile)
        try:
            await connection.profiles.CreateProfile(create, timeout=CALL_S, metadata=connection.metadata)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.ALREADY_EXISTS
        yield connection


@pytest.fixture
async def crew(client: Client) -> AsyncIterator[Any]:
    """A crew of one that sleeps when idle for 1 s, and remembers something."""
    made = await client.assemble(name="nap", members=[{"name": "dormouse", "profile": SLEEPY}])
    yield made
    await client.disband(made.id)


@pytest.fixture
async def lasting(client: Client) -> AsyncIterator[Any]:
    """A crew of one that sleeps only when told."""
    made = await client.assemble(name="nap", members=[{"name": "owl", "profile": "generic"}])
    yield made
    await client.disband(made.id)


class Direct:
    """An agent's own endpoint through the gateway, with plain grpcio."""

    def __init__(self, running: Running, agent: Any) -> None:
        told = running.client
        name = agent.endpoint.authority
        options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        self.channel = grpc.aio.secure_channel(told["endpoint"], credentials_of(told), options)
        self.stub = agent_service_pb2_grpc.AgentServiceStub(self.channel)
        self._metadata = [("authorization", f"Bearer {token_of(told)}")]

    async def __aenter__(self) -> Direct:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def cut(self) -> None:
        """Return once the client has heard that its connection is gone: a call on it before would be lost."""
        async with asyncio.timeout(WITHIN_S):
            while (state := self.channel.get_state()) is grpc.ChannelConnectivity.READY:
                await self.channel.wait_for_state_change(state)

    async def put(self, key: str, text: str) -> None:
        request = ap.PutMemoryRequest(key=key, value=Value(string_value=text))
        await self.stub.PutMemory(request, timeout=CALL_S, metadata=self._metadata)

    async def get(self, key: str = KEY) -> str:
        request = ap.GetMemoryRequest(key=key)
        answer = await self.stub.GetMemory(request, timeout=CALL_S, metadata=self._metadata)
        return answer.value.string_value


async def agent_of(client: Client, crew: str) -> Any:
    return (await client.get(crew)).agents[0]


async def until(client: Client, crew: str, state: int) -> Any:
    """The crew's only agent, once it is in the state."""
    async with asyncio.timeout(WITHIN_S):
        while (agent := await agent_of(client, crew)).state != state:
            await asyncio.sleep(0.01)
    return agent


async def gone(pid: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def asleep(fragile: Running, client: Client, crew: Any, text: str = "42") -> Any:
    """The crew's only agent, after it remembered something and fell asleep by itself."""
    async with Direct(fragile, crew.agents[0]) as direct:
        await direct.put(KEY, text)
    sleeper = await until(client, crew.id, types_pb2.AGENT_STATE_HIBERNATING)
    assert not sleeper.HasField("instance")
    return sleeper


async def remembered(fragile: Running, agent: Any) -> str:
    async with Direct(fragile, agent) as direct:
        return await direct.get()


async def wake(client: Client, agent: str) -> Any:
    request = fp.WakeAgentRequest(request_id=request_id(), agent=agent)
    return (await client.factory.WakeAgent(request, timeout=CALL_S, metadata=client.metadata)).agent


async def hibernate(client: Client, agent: str, *, light: bool = False) -> Any:
    request = fp.HibernateAgentRequest(request_id=request_id(), agent=agent, light=light)
    return (await client.factory.HibernateAgent(request, timeout=CALL_S, metadata=client.metadata)).agent


async def test_an_idle_agent_sleeps_and_its_process_is_gone(fragile, client, crew):
    before = crew.agents[0]
    sleeper = await asleep(fragile, client, crew)
    assert (sleeper.generation, sleeper.reason) == (1, "Idle")
    await gone(before.instance.host_pid)
    assert (await client.get(crew.id)).state == types_pb2.CREW_STATE_READY


async def test_it_wakes_by_rpc_with_its_memory(fragile, client, crew):
    sleeper = await asleep(fragile, client, crew, "by rpc")
    woken = await wake(client, sleeper.id)
    assert (woken.id, woken.state, woken.generation) == (sleeper.id, types_pb2.AGENT_STATE_READY, 2)
    assert await remembered(fragile, woken) == "by rpc"
    assert (await wake(client, sleeper.id)).generation == 2


async def test_a_call_by_its_name_wakes_it(fragile, client, crew):
    sleeper = await asleep(fragile, client, crew, "by call")
    assert await remembered(fragile, sleeper) == "by call"
    assert (await agent_of(client, crew.id)).generation == 2


async def test_a_channel_that_was_open_before_finds_it_again(fragile, client, crew):
    async with Direct(fragile, crew.agents[0]) as direct:
        await direct.put(KEY, "same channel")
        await until(client, crew.id, types_pb2.AGENT_STATE_HIBERNATING)
        await direct.cut()
        assert await direct.get() == "same channel"


async def test_a_broadcast_wakes_it_and_is_acknowledged(fragile, client, crew):
    await asleep(fragile, client, crew, "by signal")
    ping = cp.BroadcastRequest(request_id=request_id(), crew=crew.id, signal="PING")
    stream = client.crews.Broadcast(ping, timeout=CALL_S, metadata=client.metadata)
    receipts = [receipt async for response in stream for receipt in response.receipts]
    assert [(r.name, r.stage, r.generation) for r in receipts] == [("dormouse", 2, 2)]
    assert await remembered(fragile, crew.agents[0]) == "by signal"


async def run_task(client: Client, crew: str) -> list[Any]:
    task = cp.RunTaskRequest(request_id=request_id(), crew=crew, agent="dormouse")
    task.input.update({"n": 1})
    return [r async for r in client.crews.RunTask(task, timeout=CALL_S, metadata=client.metadata)]


async def test_a_task_wakes_it_and_is_done(fragile, client, crew):
    await asleep(fragile, client, crew, "by task")
    updates = await run_task(client, crew.id)
    assert updates[0].accepted.generation == 2
    assert updates[-1].result.status.code == 0
    assert await remembered(fragile, crew.agents[0]) == "by task"


async def test_mates_wake_each_other_by_calling(fragile, client):
    """The planner calls its mates directly, past the gateway and the factory."""
    members = [{"name": name, "profile": name} for name in ("planner", "coder", "reviewer")]
    made = await client.assemble(name="mission", members=members)
    for agent in made.agents:
        if agent.name != "planner":
            await hibernate(client, agent.id)
    task = cp.RunTaskRequest(request_id=request_id(), crew=made.id, agent="planner")
    task.input.update({"mission": "count primes", "numbers": 1000})
    updates = [r async for r in client.crews.RunTask(task, timeout=CALL_S, metadata=client.metadata)]
    assert updates[-1].result.status.code == 0, updates[-1].result.status
    after = await client.get(made.id)
    assert {a.name: a.generation for a in after.agents} == {"planner": 1, "coder": 2, "reviewer": 2}
    await client.disband(made.id)
    assert not list(fragile.home.rglob("doorsteps/*.sock"))


async def test_calls_and_signals_keep_it_awake(fragile, client, crew):
    """A second is over thrice, and nothing of what was done moved its row."""
    ends = asyncio.get_running_loop().time() + 3.0
    async with Direct(fragile, crew.agents[0]) as direct:
        await direct.put(KEY, "up")
        while asyncio.get_running_loop().time() < ends:
            assert await direct.get() == "up"
            await asyncio.sleep(0.2)
    assert (await agent_of(client, crew.id)).generation == 1
    await until(client, crew.id, types_pb2.AGENT_STATE_HIBERNATING)


async def test_a_leased_agent_is_not_idle(fragile, client, crew):
    acquire = fp.AcquireAgentRequest(request_id=request_id(), agent=crew.agents[0].id)
    acquire.lease.FromSeconds(2)
    await client.factory.AcquireAgent(acquire, timeout=CALL_S, metadata=client.metadata)
    sleeper = await until(client, crew.id, types_pb2.AGENT_STATE_HIBERNATING)
    request = cp.ListEventsRequest(crew=crew.id)
    events = (await client.crews.ListEvents(request, timeout=CALL_S, metadata=client.metadata)).events
    times = {e.agent_step.event: e.time.ToNanoseconds() / 1e9 for e in events if e.agent_step.event}
    assert times["task_completed"] - times["task_assigned"] >= 2.0
    assert times["ttl_expired"] - times["task_completed"] >= 1.0
    assert sleeper.generation == 1


async def test_who_wants_its_lock_wakes_it(fragile, client, crew):
    sleeper = await asleep(fragile, client, crew, "by lock")
    acquire = fp.AcquireAgentRequest(request_id=request_id(), agent=sleeper.id)
    held = (await client.factory.AcquireAgent(acquire, timeout=CALL_S, metadata=client.metadata)).agent
    assert (held.id, held.state, held.generation) == (sleeper.id, types_pb2.AGENT_STATE_BUSY, 2)
    assert await remembered(fragile, held) == "by lock"


async def test_hibernation_by_request_refuses_who_works_and_repeats_itself(fragile, client, lasting):
    agent = lasting.agents[0]
    acquire = fp.AcquireAgentRequest(request_id=request_id(), agent=agent.id)
    held = (await client.factory.AcquireAgent(acquire, timeout=CALL_S, metadata=client.metadata)).agent
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await hibernate(client, agent.id)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    release = fp.ReleaseAgentRequest(request_id=request_id(), agent=agent.id, generation=held.generation)
    await client.factory.ReleaseAgent(release, timeout=CALL_S, metadata=client.metadata)
    request = fp.HibernateAgentRequest(request_id=request_id(), agent=agent.id)
    for _ in range(2):
        response = await client.factory.HibernateAgent(request, timeout=CALL_S, metadata=client.metadata)
        assert response.agent.state == types_pb2.AGENT_STATE_HIBERNATING
    assert (await hibernate(client, agent.id)).generation == 1


async def test_it_wakes_without_a_warm_instance(fragile, client, lasting):
    async with Direct(fragile, lasting.agents[0]) as direct:
        await direct.put(KEY, "cold")
    await hibernate(client, lasting.agents[0].id)
    await set_pool(client, 0)
    try:
        woken = await wake(client, lasting.agents[0].id)
        assert (woken.warm, woken.generation) == (False, 2)
        assert await remembered(fragile, woken) == "cold"
    finally:
        await set_pool(client, 8)


async def set_pool(client: Client, target: int) -> None:
    """A pool of this size, filled or emptied."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            # Said again: one that was being made when the pool shrank is WARM only now.
            request = fp.UpdatePoolRequest(request_id=request_id(), base="python", target=target)
            await client.factory.UpdatePool(request, timeout=CALL_S, metadata=client.metadata)
            pools = await client.factory.GetPool(
                fp.GetPoolRequest(), timeout=CALL_S, metadata=client.metadata
            )
            if pools.pools[0].ready == target:
                return
            await asyncio.sleep(0.02)


async def test_a_damaged_state_fails_the_agent_instead_of_its_memory(fragile, client, lasting):
    await hibernate(client, lasting.agents[0].id)
    async with await psycopg.AsyncConnection.connect(EmbeddedPostgres(fragile.home).url) as connection:
        await connection.execute(
            "UPDATE agent_state SET data = data || '!' WHERE agent = %s", [lasting.agents[0].id]
        )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await wake(client, lasting.agents[0].id)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    failed = await agent_of(client, lasting.id)
    assert (failed.state, failed.reason) == (types_pb2.AGENT_STATE_FAILED, "StateCorrupt")


async def test_hibernating_and_waking_at_once_lose_nothing(fragile, client, lasting):
    """Whoever wins, the agent is whole afterwards and every value that was acknowledged is there."""
    agent = lasting.agents[0]

    async def churn(action: Any) -> None:
        for _ in range(15):
            try:
                await action(client, agent.id)
            except grpc.aio.AioRpcError as error:
                assert error.code() in (
                    grpc.StatusCode.ABORTED,
                    grpc.StatusCode.FAILED_PRECONDITION,
                ), error.details()

    acknowledged = []

    async def write() -> None:
        """Until enough is acknowledged; what falls into a suspension is refused, and tried anew."""
        number = 0
        async with Direct(fragile, agent) as direct, asyncio.timeout(WITHIN_S):
            while len(acknowledged) < 30:
                number += 1
                try:
                    await direct.put(f"k{number}", str(number))
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error.details()
                    await asyncio.sleep(0.01)
                else:
                    acknowledged.append(number)

    async with asyncio.TaskGroup() as group:
        for action in (hibernate, wake, hibernate, wake):
            group.create_task(churn(action))
        group.create_task(write())
    await wake(client, agent.id)
    async with Direct(fragile, agent) as direct:
        for number in acknowledged:
            assert await direct.get(f"k{number}") == str(number)
    assert (await agent_of(client, lasting.id)).generation > 1


async def test_the_factory_may_die_in_the_middle(fragile, client, crew):
    """kill -9 while the agent falls asleep, and while it wakes: its memory is there in the end."""
    async with Direct(fragile, crew.agents[0]) as direct:
        await direct.put(KEY, "survives")
    for round_ in range(2):
        await asyncio.sleep(0.97 + 0.03 * round_)
        kill_factory(fragile)
        await eventually(fragile, crew.id, types_pb2.AGENT_STATE_HIBERNATING)
        async with connected(fragile) as again:
            waking = asyncio.ensure_future(wake(again, crew.agents[0].id))  # noqa: TID251 - awaited below
            await asyncio.sleep(0.008 * round_)
            kill_factory(fragile)
            await asyncio.wait([waking])
            waking.exception()
        async with connected(fragile) as again, asyncio.timeout(WITHIN_S):
            while True:
                try:
                    await wake(again, crew.agents[0].id)
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
        assert await remembered(fragile, crew.agents[0]) == "survives"


async def frozen(client: Client, *agents: Any) -> None:
    """The agents, frozen in place, with their processes stopped."""
    for agent in agents:
        told = await hibernate(client, agent.id, light=True)
        assert told.HasField("frozen_time")
        assert (told.state, told.generation) == (types_pb2.AGENT_STATE_READY, agent.generation)
        assert told.endpoint.direct == ""
    await asyncio.sleep(HEARD_S)
    async with asyncio.timeout(WITHIN_S):
        before: list[int] = []
        # One that runs, though idle, is given a core in this time.
        while before != (before := [given_a_core(agent.instance.host_pid) for agent in agents]):
            await asyncio.sleep(STILL_S)


def given_a_core(pid: int) -> int:
    """How often its threads were, or gave it up."""
    files = [status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status")]
    lines = [line for text in files for line in text.splitlines() if "ctxt_switches" in line]
    return sum(int(line.split()[1]) for line in lines)


async def is_itself(client: Client, before: Any) -> None:
    """Awake, and nothing about it is new."""
    agents = (await client.get(before.crew)).agents
    now = next(agent for agent in agents if agent.id == before.id)
    assert not now.HasField("frozen_time")
    assert (now.generation, now.instance.host_pid) == (before.generation, before.instance.host_pid)


async def test_the_factory_may_die_while_an_agent_is_frozen(fragile, client, lasting):
    owl = lasting.agents[0]
    async with Direct(fragile, owl) as direct:
        await direct.put(KEY, "survives")
        await frozen(client, owl)
        kill_factory(fragile)
        await eventually(fragile, lasting.id, types_pb2.AGENT_STATE_READY)
        async with connected(fragile) as again:
            assert (await agent_of(again, lasting.id)).HasField("frozen_time")
        assert await direct.get() == "survives"
    async with connected(fragile) as again:
        await is_itself(again, owl)


def kill_factory(running: Running) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(running.home) in line and "-m factory_server " in line:
            os.kill(int(process.name), signal.SIGKILL)


async def eventually(running: Running, crew: str, state: int) -> None:
    """Like `until`, while the factory comes and goes."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                async with connected(running) as client:
                    await until(client, crew, state)
                    return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


async def test_a_crew_that_is_disbanded_asleep_leaves_nothing(fragile, client):
    made = await client.assemble(name="nap", members=[{"name": "owl", "profile": "generic"}])
    await hibernate(client, made.agents[0].id)
    ended = await client.disband(made.id)
    assert ended.state == types_pb2.CREW_STATE_DISBANDED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await wake(client, made.agents[0].id)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    found = await leaks.settle(fragile.home)
    assert leaks.total(found) == 0, [leak for leak in found if leak.value]
