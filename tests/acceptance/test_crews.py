"""Crews through the gateway, by generated stubs: what an orchestrator does all day."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from running import CALL_WITHIN_S, MANIFEST, Client, manifest, request_id

from hyperfactory.v1 import crew_service_pb2 as cp
from hyperfactory.v1 import events_pb2, profile_service_pb2, types_pb2
from hyperfactory.v1 import factory_service_pb2 as fp

pytestmark = pytest.mark.timeout(120)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The ErrorInfo's reason; the domain must be ours."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details), status
    assert info.domain == "hyperfactory.v1"
    return info.reason


async def call(method, request, client: Client):
    return await method(request, timeout=CALL_WITHIN_S, metadata=client.metadata)


async def events_until(client: Client, request: cp.WatchCrewRequest, enough) -> tuple[list, str]:
    """Events and the last cursor, once enough(events) holds."""
    events: list[events_pb2.Event] = []
    stream = client.crews.WatchCrew(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
    cursor = ""
    async for response in stream:
        events.extend(response.events)
        cursor = response.cursor
        if enough(events):
            stream.cancel()
            return events, cursor
    raise AssertionError("the stream ended")


async def test_a_crew_is_ready_with_every_member_on_its_own_name(client, crew):
    assert crew.state == types_pb2.CREW_STATE_READY
    assert [a.name for a in crew.agents] == ["coder-1", "coder-2", "planner"]
    for agent in crew.agents:
        assert agent.state == types_pb2.AGENT_STATE_READY
        assert agent.generation == 1
        assert agent.endpoint.authority == f"{agent.name}.crew-{crew.id}.svc"
        assert agent.instance.host_pid > 1
    assert (await client.get(crew.id)).id == crew.id


async def test_the_same_request_gives_the_same_crew_and_another_is_refused(client):
    request = cp.AssembleCrewRequest(request_id=request_id(), manifest=manifest())
    async with asyncio.TaskGroup() as group:
        twice = [group.create_task(call(client.crews.AssembleCrew, request, client)) for _ in range(2)]
    first, second = (task.result().crew.id for task in twice)
    try:
        assert first == second
        request.manifest.name = "other"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(client.crews.AssembleCrew, request, client)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(refused.value) == "REQUEST_ID_REUSED"
    finally:
        await client.disband(first)


async def test_validate_only_makes_nothing(client):
    before = await call(client.crews.ListCrews, cp.ListCrewsRequest(), client)
    request = cp.AssembleCrewRequest(request_id=request_id(), manifest=manifest(), validate_only=True)
    response = await call(client.crews.AssembleCrew, request, client)
    assert not response.HasField("crew")
    after = await call(client.crews.ListCrews, cp.ListCrewsRequest(), client)
    assert [c.id for c in after.crews] == [c.id for c in before.crews]


async def test_accepted_answers_before_ready_and_the_watch_tells_when(client):
    request = cp.AssembleCrewRequest(request_id=request_id(), manifest=manifest(), wait=cp.WAIT_FOR_ACCEPTED)
    accepted = (await call(client.crews.AssembleCrew, request, client)).crew
    try:
        events, _ = await events_until(
            client,
            cp.WatchCrewRequest(crew=accepted.id),
            lambda seen: any(e.crew_step.to == types_pb2.CREW_STATE_READY for e in seen),
        )
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    finally:
        await client.disband(accepted.id)


async def test_a_broadcast_has_one_receipt_for_each_target_and_its_repeat_joins(client, crew):
    payload = Struct()
    payload.update({"mission": "test"})
    request = cp.BroadcastRequest(
        request_id=request_id(), crew=crew.id, signal="MISSION_START", payload=payload
    )
    for joined in (False, True):
        stream = client.crews.Broadcast(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
        responses = [r async for r in stream]
        assert responses[0].accepted.targets == 3
        assert responses[0].accepted.joined is joined
        receipts = [receipt for r in responses for receipt in r.receipts]
        assert sorted(r.name for r in receipts) == ["coder-1", "coder-2", "planner"]
        assert {r.stage for r in receipts} == {events_pb2.RECEIPT_STAGE_ACKED}
        summary = responses[-1].completed
        assert [(s.stage, s.count) for s in summary.stages] == [(events_pb2.RECEIPT_STAGE_ACKED, 3)]
    again = client.crews.WatchBroadcast(
        cp.WatchBroadcastRequest(broadcast=summary.broadcast), timeout=CALL_WITHIN_S, metadata=client.metadata
    )
    assert sum(len(r.receipts) for r in [r async for r in again]) == 3


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (cp.BroadcastTarget(names=["coder"]), ["coder-1", "coder-2"]),
        (cp.BroadcastTarget(names=["planner", "coder-2"]), ["coder-2", "planner"]),
        (cp.BroadcastTarget(labels={"team": "blue"}), ["coder-1", "coder-2"]),
        (cp.BroadcastTarget(states=[types_pb2.AGENT_STATE_READY]), ["coder-1", "coder-2", "planner"]),
    ],
)
async def test_a_broadcast_reaches_its_target_only(client, crew, target, names):
    request = cp.BroadcastRequest(request_id=request_id(), crew=crew.id, signal="PING", target=target)
    stream = client.crews.Broadcast(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
    receipts = [receipt async for r in stream for receipt in r.receipts]
    assert sorted(r.name for r in receipts) == names


async def test_a_watch_resumes_at_any_cursor_without_loss_or_repeat(client, crew):
    request = cp.BroadcastRequest(request_id=request_id(), crew=crew.id, signal="PING")
    async for _ in client.crews.Broadcast(request, timeout=CALL_WITHIN_S, metadata=client.metadata):
        pass
    head = (await client.get(crew.id)).last_sequence
    whole, _ = await events_until(
        client, cp.WatchCrewRequest(crew=crew.id), lambda seen: seen and seen[-1].sequence >= head
    )
    assert [e.sequence for e in whole[:head]] == list(range(1, head + 1))
    page = await call(client.crews.ListEvents, cp.ListEventsRequest(crew=crew.id, page_size=5), client)
    assert [e.sequence for e in page.events] == [1, 2, 3, 4, 5]
    rest, _ = await events_until(
        client,
        cp.WatchCrewRequest(crew=crew.id, cursor=page.cursor),
        lambda seen: seen and seen[-1].sequence >= head,
    )
    assert [e.sequence for e in rest][: head - 5] == list(range(6, head + 1))


async def test_a_foreign_cursor_is_refused(client, crew):
    page = await call(client.crews.ListEvents, cp.ListEventsRequest(crew=crew.id, page_size=1), client)
    for request in (
        cp.WatchCrewRequest(crew="-", cursor=page.cursor),
        cp.WatchCrewRequest(
            crew=crew.id, cursor=page.cursor, filter=cp.EventFilter(types=[events_pb2.EVENT_TYPE_TASK])
        ),
        cp.WatchCrewRequest(crew=crew.id, cursor="forged"),
    ):
        stream = client.crews.WatchCrew(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(refused.value) == "CURSOR_INVALID"


async def test_all_crews_are_watched_from_the_cursor_of_a_list(client):
    listed = await call(client.crews.ListCrews, cp.ListCrewsRequest(), client)
    crew = await client.assemble(name="watched")
    try:
        request = cp.WatchCrewRequest(crew="-", cursor=listed.cursor)
        events, _ = await events_until(
            client, request, lambda seen: any(e.crew_step.to == types_pb2.CREW_STATE_READY for e in seen)
        )
        mine = [e.sequence for e in events if e.crew == crew.id]
        assert mine == list(range(1, len(mine) + 1))
    finally:
        await client.disband(crew.id)


async def test_a_task_locks_its_agent_streams_and_gives_it_back(client, crew):
    body = Struct()
    body.update({"mission": "count primes", "numbers": 2000})
    request = cp.RunTaskRequest(request_id=request_id(), crew=crew.id, agent="planner", input=body)
    stream = client.crews.RunTask(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
    updates = [u async for u in stream]
    assert updates[0].WhichOneof("update") == "accepted"
    assert updates[-1].WhichOneof("update") == "result"
    planner = (
        await call(client.factory.GetAgent, fp.GetAgentRequest(agent=updates[0].accepted.agent), client)
    ).agent
    assert planner.state == types_pb2.AGENT_STATE_READY
    again = client.crews.RunTask(request, timeout=CALL_WITHIN_S, metadata=client.metadata)
    replayed = [u async for u in again]
    assert replayed[0].accepted.task == updates[0].accepted.task
    assert replayed[-1].result == updates[-1].result


async def test_a_lease_has_one_holder(client, crew):
    agent = crew.agents[0].id
    lock = fp.AcquireAgentRequest(request_id=request_id(), agent=agent, lease=Duration(seconds=30))
    locked = (await call(client.factory.AcquireAgent, lock, client)).agent
    assert locked.state == types_pb2.AGENT_STATE_BUSY
    task = cp.RunTaskRequest(request_id=request_id(), crew=crew.id, agent=agent)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.crews.RunTask(task, timeout=CALL_WITHIN_S, metadata=client.metadata).read()
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(refused.value) == "LEASE_HELD"
    give = fp.ReleaseAgentRequest(request_id=request_id(), agent=agent, generation=locked.generation)
    assert (await call(client.factory.ReleaseAgent, give, client)).agent.state == types_pb2.AGENT_STATE_READY


async def test_a_lease_that_runs_out_frees_its_agent(client, crew):
    agent = crew.agents[0].id
    lock = fp.AcquireAgentRequest(request_id=request_id(), agent=agent, lease=Duration(seconds=1))
    await call(client.factory.AcquireAgent, lock, client)
    events, _ = await events_until(
        client,
        cp.WatchCrewRequest(crew=crew.id),
        lambda seen: any(e.agent_step.event == "task_completed" for e in seen),
    )
    freed = next(e for e in events if e.agent_step.event == "task_completed")
    assert freed.agent_step.reason == "LeaseExpired"


async def test_context_has_versions_and_its_changes_are_events(client, crew):
    goal = await call(client.crews.GetContext, cp.GetContextRequest(crew=crew.id, key="goal"), client)
    assert goal.entry.version == 1
    assert goal.entry.value.struct_value["answer"] == 42
    put = cp.PutContextRequest(
        request_id=request_id(), crew=crew.id, key="goal", value=Value(string_value="new"), if_version=1
    )
    assert (await call(client.crews.PutContext, put, client)).version == 2
    assert (await call(client.crews.PutContext, put, client)).version == 2
    stale = cp.PutContextRequest(
        request_id=request_id(), crew=crew.id, key="goal", value=Value(string_value="late"), if_version=1
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(client.crews.PutContext, stale, client)
    assert reason_of(refused.value) == "VERSION_MISMATCH"
    await events_until(
        client,
        cp.WatchCrewRequest(crew=crew.id),
        lambda seen: any(e.context.key == "goal" and e.context.version == 2 for e in seen),
    )


async def test_an_agent_is_spawned_into_a_crew_or_alone_and_stopped(client, crew):
    joined = fp.SpawnAgentRequest(request_id=request_id(), profile="reviewer", name="critic", crew=crew.id)
    critic = (await call(client.factory.SpawnAgent, joined, client)).agent
    assert critic.crew == crew.id
    assert critic.state == types_pb2.AGENT_STATE_READY
    alone = fp.SpawnAgentRequest(request_id=request_id(), profile="generic")
    solo = (await call(client.factory.SpawnAgent, alone, client)).agent
    for agent in (critic, solo):
        await call(
            client.factory.StopAgent, fp.StopAgentRequest(request_id=request_id(), agent=agent.id), client
        )
    await events_until(
        client,
        cp.WatchCrewRequest(crew=solo.crew),
        lambda seen: any(e.crew_step.to == types_pb2.CREW_STATE_DISBANDED for e in seen),
    )
    await events_until(
        client,
        cp.WatchCrewRequest(crew=crew.id),
        lambda seen: any(
            e.agent == critic.id and e.agent_step.to == types_pb2.AGENT_STATE_STOPPED for e in seen
        ),
    )
    assert (await client.get(crew.id)).state == types_pb2.CREW_STATE_READY


async def test_a_broken_profile_takes_the_whole_crew_back(client):
    profile = types_pb2.Profile(name="broken", spec=types_pb2.ProfileSpec(entry_point="no.such.module:Thing"))
    create = profile_service_pb2.CreateProfileRequest(request_id=request_id(), profile=profile)
    await call(client.profiles.CreateProfile, create, client)
    members = [{"name": "good", "profile": "generic"}, {"name": "bad", "profile": "broken"}]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.assemble(members=members)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason_of(refused.value) == "ASSEMBLY_FAILED"
    agents = await call(client.factory.ListAgents, fp.ListAgentsRequest(filter="profile=broken"), client)
    assert not agents.agents


async def test_profiles_have_versions_and_etags(client):
    profile = types_pb2.Profile(name="mine", spec=types_pb2.ProfileSpec(scope="coder"), description="first")
    create = profile_service_pb2.CreateProfileRequest(request_id=request_id(), profile=profile)
    made = (await call(client.profiles.CreateProfile, create, client)).profile
    assert (made.version, made.stage) == (1, types_pb2.PROFILE_STAGE_DRAFT)
    create.request_id = request_id()
    with pytest.raises(grpc.aio.AioRpcError) as taken:
        await call(client.profiles.CreateProfile, create, client)
    assert taken.value.code() == grpc.StatusCode.ALREADY_EXISTS
    made.description = "second"
    update = profile_service_pb2.UpdateProfileRequest(request_id=request_id(), profile=made)
    update.update_mask.paths.append("description")
    changed = (await call(client.profiles.UpdateProfile, update, client)).profile
    assert (changed.version, changed.description) == (2, "second")
    update.request_id = request_id()
    with pytest.raises(grpc.aio.AioRpcError) as stale:
        await call(client.profiles.UpdateProfile, update, client)
    assert stale.value.code() == grpc.StatusCode.ABORTED
    listed = await call(client.profiles.ListProfiles, profile_service_pb2.ListProfilesRequest(), client)
    assert {"generic", "planner", "coder", "reviewer", "mine"} <= {p.name for p in listed.profiles}


async def test_an_update_scales_adds_and_removes(client, crew):
    """Members that stay are untouched, those that come are reached, a repeat says the same."""
    planner, coders = MANIFEST["members"]
    members = [planner, coders | {"replicas": 3}, {"name": "critic", "profile": "reviewer"}]
    request = cp.UpdateCrewRequest(request_id=request_id(), crew=crew.id, manifest=manifest(members=members))
    request.validate_only = True
    checked = await call(client.crews.UpdateCrew, request, client)
    assert (list(checked.added), checked.HasField("crew")) == (["coder-3", "critic"], False)
    request.validate_only = False
    for _ in range(2):
        grown = await call(client.crews.UpdateCrew, request, client)
        assert (list(grown.added), list(grown.removed)) == (["coder-3", "critic"], [])
        assert [a.name for a in grown.crew.agents] == ["coder-1", "coder-2", "coder-3", "critic", "planner"]
        assert {a.state for a in grown.crew.agents} == {types_pb2.AGENT_STATE_READY}
        assert {a.generation for a in grown.crew.agents} == {1}
    heard = cp.BroadcastRequest(request_id=request_id(), crew=crew.id, signal="MISSION_START")
    stream = client.crews.Broadcast(heard, timeout=CALL_WITHIN_S, metadata=client.metadata)
    assert [r.completed.targets async for r in stream if r.HasField("completed")] == [5]
    shrink = cp.UpdateCrewRequest(request_id=request_id(), crew=crew.id, manifest=manifest())
    assert list((await call(client.crews.UpdateCrew, shrink, client)).removed) == ["coder-3", "critic"]
    watch = cp.WatchCrewRequest(crew=crew.id)
    stopped = {a.id for a in grown.crew.agents if a.name in ("coder-3", "critic")}
    events, _ = await events_until(client, watch, lambda seen: stopped <= _stopped(seen))
    updates = [e.crew_step.message for e in events if e.crew_step.reason == "Updated"]
    assert updates == ["added coder-3, critic", "removed coder-3, critic"]
    assert [a.name for a in (await client.get(crew.id)).agents] == ["coder-1", "coder-2", "planner"]


def _stopped(events: list) -> set[str]:
    return {e.agent for e in events if e.agent_step.to == types_pb2.AGENT_STATE_STOPPED}


async def test_logs_info_pool_and_audit_answer(client, crew):
    info = await call(client.factory.GetFactoryInfo, fp.GetFactoryInfoRequest(), client)
    assert info.driver == "namespaces"
    assert info.tier in ("full", "rootless")
    pools = (await call(client.factory.GetPool, fp.GetPoolRequest(), client)).pools
    assert [p.base for p in pools] == ["python"]
    stream = client.factory.GetAgentLogs(
        fp.GetAgentLogsRequest(agent=crew.agents[0].id), timeout=CALL_WITHIN_S, metadata=client.metadata
    )
    assert b"".join([r.chunk async for r in stream])
    audit = await call(client.factory.ListAuditEvents, fp.ListAuditEventsRequest(page_size=50), client)
    assert any(e.method.endswith("/AssembleCrew") and e.outcome == "OK" for e in audit.events)


async def test_lists_go_page_by_page(client, crew):
    request = fp.ListAgentsRequest(page_size=2, filter=f"crew={crew.id}")
    first = await call(client.factory.ListAgents, request, client)
    request.page_token = first.next_page_token
    second = await call(client.factory.ListAgents, request, client)
    assert len(first.agents) == 2
    assert len(second.agents) == 1
    assert not second.next_page_token
    request.filter = "state=READY"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(client.factory.ListAgents, request, client)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_crew_ends_by_its_ttl(client):
    crew = await client.assemble(ttl="1s", members=[{"name": "brief", "profile": "generic"}])
    await events_until(
        client,
        cp.WatchCrewRequest(crew=crew.id),
        lambda seen: any(e.crew_step.to == types_pb2.CREW_STATE_DISBANDED for e in seen),
    )
    assert (await client.disband(crew.id)).state == types_pb2.CREW_STATE_DISBANDED
