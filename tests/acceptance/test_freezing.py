"""Frozen in place end to end: the same instance, no CPU while nobody wants it, and any use brings it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from running import Client, Running, connected, request_id, running_stack
from test_hibernation import KEY, Direct, agent_of, eventually, kill_factory, wake

from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import events_pb2, types_pb2
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import profile_service_pb2 as pp

pytestmark = pytest.mark.timeout(180)

WITHIN_S = 20.0
CALL_S = 15.0
HEARD_S = 1.0
WATCHED_S = 0.2
"""The watchdog's interval here: it would condemn after four."""
READY = types_pb2.AGENT_STATE_READY


@pytest.fixture(scope="module")
def icy() -> Iterator[Running]:
    """A stack of this file's own: its factory is killed."""
    with running_stack("hfi") as stack:
        yield stack


@pytest.fixture
async def client(icy: Running) -> AsyncIterator[Client]:
    async with connected(icy) as connection:
        yield connection


@pytest.fixture(scope="module", autouse=True)
def profiles(icy: Running) -> None:
    """One that is watched closely, and one that freezes by itself."""

    async def make() -> None:
        async with connected(icy) as client:
            for name, idle_s in (("watched", 0), ("chilly", 1)):
                profile = types_pb2.Profile(name=name)
                profile.spec.health_interval.FromMilliseconds(int(WATCHED_S * 1000))
                if idle_s:
                    profile.spec.freeze_after.FromSeconds(idle_s)
                create = pp.CreateProfileRequest(request_id=request_id(), profile=profile)
                await client.profiles.CreateProfile(create, timeout=CALL_S, metadata=client.metadata)

    asyncio.run(make())


@pytest.fixture
async def crew(client: Client) -> AsyncIterator[Any]:
    made = await client.assemble(name="cold", members=[{"name": "newt", "profile": "watched"}])
    yield made
    await client.disband(made.id)


async def freeze(client: Client, agent: str) -> Any:
    request = fp.HibernateAgentRequest(request_id=request_id(), agent=agent, light=True)
    return (await client.factory.HibernateAgent(request, timeout=CALL_S, metadata=client.metadata)).agent


async def held(client: Client, agent: Any) -> Any:
    """The agent, frozen, once its processes have stopped."""
    frozen = await freeze(client, agent.id)
    assert frozen.HasField("frozen_time")
    assert (frozen.state, frozen.generation, frozen.endpoint.direct) == (READY, agent.generation, "")
    await stopped(agent.instance.host_pid)
    return frozen


def ticks(pid: int) -> int:
    """CPU time of a process, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def switches(pid: int) -> int:
    """How often its threads were given a core, or gave it up."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)
    return found


async def stopped(pid: int) -> None:
    """Until everybody has heard it, and it was not given a core since: an idle one that runs is given one by then."""
    await asyncio.sleep(HEARD_S)
    async with asyncio.timeout(WITHIN_S):
        while True:
            before = switches(pid)
            await asyncio.sleep(2 * WATCHED_S)
            if switches(pid) == before:
                return


async def is_itself(client: Client, crew: str, before: Any) -> None:
    """Thawed, and nothing about it is new."""
    now = await agent_of(client, crew)
    assert not now.HasField("frozen_time")
    assert (now.id, now.generation, now.instance.host_pid) == (before.id, 1, before.instance.host_pid)


async def test_it_uses_no_cpu_is_not_condemned_and_wakes_by_rpc(icy, client, crew):
    newt = crew.agents[0]
    async with Direct(icy, newt) as direct:
        await direct.put(KEY, "kept")
    await held(client, newt)
    assert (await freeze(client, newt.id)).HasField("frozen_time"), "the same again is harmless"
    spent, given = ticks(newt.instance.host_pid), switches(newt.instance.host_pid)
    await asyncio.sleep(8 * WATCHED_S)
    assert (ticks(newt.instance.host_pid), switches(newt.instance.host_pid)) == (spent, given)
    since = time.monotonic()
    woken = await wake(client, newt.id)
    print(f"thawed in {(time.monotonic() - since) * 1000:.1f} ms")
    assert not woken.HasField("frozen_time")
    async with Direct(icy, newt) as direct:
        assert await direct.get() == "kept"
    await is_itself(client, crew.id, newt)
    listing = cp.ListEventsRequest(crew=crew.id)
    events = (await client.crews.ListEvents(listing, timeout=CALL_S, metadata=client.metadata)).events
    said = [e.condition.status for e in events if e.type == events_pb2.EVENT_TYPE_CONDITION]
    assert said == [types_pb2.CONDITION_STATUS_TRUE, types_pb2.CONDITION_STATUS_FALSE]


async def test_a_call_on_a_channel_that_was_open_before_wakes_it(icy, client, crew):
    async with Direct(icy, crew.agents[0]) as direct:
        await direct.put(KEY, "same channel")
        await held(client, crew.agents[0])
        assert await direct.get() == "same channel"
    await is_itself(client, crew.id, crew.agents[0])


async def run_task(client: Client, crew: str, agent: str, given: dict[str, Any]) -> Any:
    task = cp.RunTaskRequest(request_id=request_id(), crew=crew, agent=agent)
    task.input.update(given)
    updates = [r async for r in client.crews.RunTask(task, timeout=CALL_S, metadata=client.metadata)]
    return updates[-1].result


async def test_tasks_broadcasts_and_locks_wake_it(client, crew):
    newt = crew.agents[0]
    await held(client, newt)
    assert (await run_task(client, crew.id, "newt", {"n": 1})).status.code == 0
    await held(client, newt)
    ping = cp.BroadcastRequest(request_id=request_id(), crew=crew.id, signal="PING")
    stream = client.crews.Broadcast(ping, timeout=CALL_S, metadata=client.metadata)
    receipts = [receipt async for response in stream for receipt in response.receipts]
    assert [(r.stage, r.generation) for r in receipts] == [(2, 1)]
    await held(client, newt)
    acquire = fp.AcquireAgentRequest(request_id=request_id(), agent=newt.id)
    got = (await client.factory.AcquireAgent(acquire, timeout=CALL_S, metadata=client.metadata)).agent
    assert (got.state, got.generation) == (types_pb2.AGENT_STATE_BUSY, 1)


async def test_mates_wake_each_other_over_channels_they_have_used(client):
    """The second mission finds channels of the first, whose far ends are frozen."""
    members = [{"name": name, "profile": name} for name in ("planner", "coder", "reviewer")]
    made = await client.assemble(name="mission", members=members)
    mission = {"mission": "count primes", "numbers": 1000}
    assert (await run_task(client, made.id, "planner", mission)).status.code == 0
    for agent in made.agents:
        if agent.name != "planner":
            await held(client, agent)
    result = await run_task(client, made.id, "planner", mission)
    assert result.status.code == 0, result.status
    after = await client.get(made.id)
    assert {a.generation for a in after.agents} == {1}
    assert not any(a.HasField("frozen_time") for a in after.agents)
    await client.disband(made.id)


async def test_a_profile_freezes_by_itself_and_one_that_is_frozen_can_be_stored_away(icy, client):
    made = await client.assemble(name="cold", members=[{"name": "newt", "profile": "chilly"}])
    newt = made.agents[0]
    async with Direct(icy, newt) as direct:
        await direct.put(KEY, "deep")
    async with asyncio.timeout(WITHIN_S):
        while not (await agent_of(client, made.id)).HasField("frozen_time"):
            await asyncio.sleep(0.02)
    await stopped(newt.instance.host_pid)
    request = fp.HibernateAgentRequest(request_id=request_id(), agent=newt.id)
    deep = (await client.factory.HibernateAgent(request, timeout=CALL_S, metadata=client.metadata)).agent
    assert (deep.state, deep.HasField("frozen_time")) == (types_pb2.AGENT_STATE_HIBERNATING, False)
    async with Direct(icy, newt) as direct:
        assert await direct.get() == "deep"
    assert (await agent_of(client, made.id)).generation == 2
    await client.disband(made.id)


async def test_the_factory_may_die_while_it_is_frozen(icy, client, crew):
    newt = crew.agents[0]
    async with Direct(icy, newt) as direct:
        await direct.put(KEY, "survives")
        await held(client, newt)
        kill_factory(icy)
        await eventually(icy, crew.id, READY)
        async with connected(icy) as again:
            assert (await agent_of(again, crew.id)).HasField("frozen_time")
        assert await direct.get() == "survives"
    async with connected(icy) as again:
        await is_itself(again, crew.id, newt)


async def test_the_factory_may_die_while_it_freezes_and_thaws(icy, client, crew):
    """At any moment of either: in the end it works on, or is found frozen and is woken."""
    newt = crew.agents[0]
    async with Direct(icy, newt) as direct:
        await direct.put(KEY, "survives")
    for round_ in range(4):
        async with connected(icy) as again:
            action = wake(again, newt.id) if round_ % 2 else freeze(again, newt.id)
            doing = asyncio.ensure_future(action)  # noqa: TID251 - awaited below
            await asyncio.sleep(0.006 * round_)
            kill_factory(icy)
            await asyncio.wait([doing])
            doing.exception()
        await eventually(icy, crew.id, READY)
    async with Direct(icy, newt) as direct:
        assert await direct.get() == "survives"
    async with connected(icy) as again:
        await is_itself(again, crew.id, newt)


async def test_one_that_dies_while_frozen_is_replaced_and_one_that_is_stopped_leaves_nothing(client, crew):
    newt = crew.agents[0]
    await held(client, newt)
    destroyed = fp.StopAgentRequest(request_id=request_id(), agent=newt.id)
    await client.factory.StopAgent(destroyed, timeout=CALL_S, metadata=client.metadata)
    async with asyncio.timeout(WITHIN_S):
        while Path(f"/proc/{newt.instance.host_pid}").exists():
            await asyncio.sleep(0.01)


async def test_who_works_is_not_frozen(client, crew):
    acquire = fp.AcquireAgentRequest(request_id=request_id(), agent=crew.agents[0].id)
    await client.factory.AcquireAgent(acquire, timeout=CALL_S, metadata=client.metadata)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await freeze(client, crew.agents[0].id)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
