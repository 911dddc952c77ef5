"""Frozen in place end to end: the same instance, no CPU while nobody wants it, and any use brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from running import Client, Running, request_id
from test_hibernation import CALL_S, KEY, WITHIN_S, Direct, frozen, given_a_core, hibernate, is_itself, wake

from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import events_pb2, types_pb2
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import profile_service_pb2 as pp

pytestmark = pytest.mark.timeout(120)

WATCHED_S = 0.2
"""The watchdog's interval here: it would condemn after four."""
NEWTS = 4


@pytest.fixture
async def profiles(client: Client) -> None:
    """One that is watched closely, and one that freezes by itself."""
    watched, chilly = types_pb2.Profile(name="watched"), types_pb2.Profile(name="chilly")
    watched.spec.health_interval.FromMilliseconds(int(WATCHED_S * 1000))
    chilly.spec.freeze_after.FromSeconds(1)
    for profile in (watched, chilly):
        create = pp.CreateProfileRequest(request_id=request_id(), profile=profile)
        try:
            await client.profiles.CreateProfile(create, timeout=CALL_S, metadata=client.metadata)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture
async def newts(client: Client, profiles: None) -> AsyncIterator[list[Any]]:
    """Agents that are watched closely."""
    members = [{"name": "newt", "profile": "watched", "replicas": NEWTS}]
    made = await client.assemble(name="cold", members=members)
    yield list(made.agents)
    await client.disband(made.id)


async def run_task(client: Client, crew: str, agent: str, given: dict[str, Any]) -> Any:
    task = cp.RunTaskRequest(request_id=request_id(), crew=crew, agent=agent)
    task.input.update(given)
    updates = [r async for r in client.crews.RunTask(task, timeout=CALL_S, metadata=client.metadata)]
    return updates[-1].result


async def test_frozen_it_uses_no_cpu_is_not_condemned_and_any_use_wakes_it(
    running: Running, client: Client, newts: list[Any]
):
    """By a call on a channel that was open before, by a task, by a lock, by request; and all by a broadcast."""
    crew = newts[0].crew
    called, worked, locked, asked = newts
    async with Direct(running, called) as direct:
        await direct.put(KEY, "kept")
        await frozen(client, *newts)
        before = [given_a_core(newt.instance.host_pid) for newt in newts]
        await asyncio.sleep(8 * WATCHED_S)
        assert [given_a_core(newt.instance.host_pid) for newt in newts] == before
        await direct.cut()
        assert await direct.get() == "kept"
    assert (await run_task(client, crew, worked.name, {"n": 1})).status.code == 0
    acquire = fp.AcquireAgentRequest(request_id=request_id(), agent=locked.id)
    held = (await client.factory.AcquireAgent(acquire, timeout=CALL_S, metadata=client.metadata)).agent
    assert held.state == types_pb2.AGENT_STATE_BUSY
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await hibernate(client, locked.id, light=True)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not (await wake(client, asked.id)).HasField("frozen_time")
    for newt in newts:
        await is_itself(client, newt)
    await frozen(client, called, worked, asked)
    ping = cp.BroadcastRequest(request_id=request_id(), crew=crew, signal="PING")
    stream = client.crews.Broadcast(ping, timeout=CALL_S, metadata=client.metadata)
    receipts = [receipt async for response in stream for receipt in response.receipts]
    assert sorted((r.stage, r.generation) for r in receipts) == [(2, 1)] * NEWTS
    assert await conditions(client, asked) == ["TRUE", "FALSE", "TRUE", "FALSE"]


async def conditions(client: Client, agent: Any) -> list[str]:
    """What its events say of its being frozen."""
    listing = cp.ListEventsRequest(crew=agent.crew, page_size=500)
    events = (await client.crews.ListEvents(listing, timeout=CALL_S, metadata=client.metadata)).events
    told = [e for e in events if e.type == events_pb2.EVENT_TYPE_CONDITION and e.agent == agent.id]
    names = [types_pb2.ConditionStatus.Name(e.condition.status) for e in told]
    return [name.removeprefix("CONDITION_STATUS_") for name in names]


async def test_mates_wake_each_other_over_channels_they_have_used(client: Client):
    """The second mission finds channels of the first, whose far ends are frozen."""
    members = [{"name": name, "profile": name} for name in ("planner", "coder", "reviewer")]
    made = await client.assemble(name="mission", members=members)
    mission = {"mission": "count primes", "numbers": 1000}
    assert (await run_task(client, made.id, "planner", mission)).status.code == 0
    await frozen(client, *[agent for agent in made.agents if agent.name != "planner"])
    result = await run_task(client, made.id, "planner", mission)
    assert result.status.code == 0, result.status
    for agent in made.agents:
        await is_itself(client, agent)
    await client.disband(made.id)


async def test_a_profile_freezes_by_itself_and_what_is_frozen_can_be_stored_away(
    running: Running, client: Client, profiles: None
):
    made = await client.assemble(name="cold", members=[{"name": "newt", "profile": "chilly"}])
    newt = made.agents[0]
    async with Direct(running, newt) as direct:
        await direct.put(KEY, "deep")
    async with asyncio.timeout(WITHIN_S):
        while not (await client.get(made.id)).agents[0].HasField("frozen_time"):
            await asyncio.sleep(0.02)
    await frozen(client, newt)
    deep = await hibernate(client, newt.id)
    assert (deep.state, deep.HasField("frozen_time")) == (types_pb2.AGENT_STATE_HIBERNATING, False)
    async with Direct(running, newt) as direct:
        assert await direct.get() == "deep"
    assert (await client.get(made.id)).agents[0].generation == 2
    await client.disband(made.id)
