"""The factory's session: receipts for signals, repeats, order, rosters and renewed identities."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from agent_runtime.tools.registry import Call, Outcome, Tool
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import events_pb2, types_pb2
from tests.integration.agent_runtime.agents import Blocking
from tests.integration.agent_runtime.parts import Instance, World, reason_of, until
from wire.errors import AlreadyExists

AGENTS = "tests.integration.agent_runtime.agents"
ACKED, REJECTED = events_pb2.RECEIPT_STAGE_ACKED, events_pb2.RECEIPT_STAGE_REJECTED


async def attach(instance: Instance) -> Any:
    session = instance.stub.Deliver()
    assert (await session.read()).attached
    assert (await session.read()).report.tools
    return session


def signal(broadcast: str, name: str = "GO") -> pb.DeliverRequest:
    return pb.DeliverRequest(signal=pb.SignalDelivery(broadcast=broadcast, signal=name))


async def receipts(session: Any, count: int) -> list[Any]:
    """So many receipts, in the order they come, from however many batches."""
    found: list[Any] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += (await session.read()).receipts
    return found


async def recorder(world: World) -> tuple[Instance, Any]:
    instance = await world.agent("solo", spec={"entry_point": f"{AGENTS}:Recorder"})
    return instance, instance.runtime.agent().parts.code


async def test_signals_are_handled_in_order_and_acknowledged(world: World) -> None:
    instance, code = await recorder(world)
    session = await attach(instance)
    for number in range(500):
        await session.write(signal(f"b{number}", f"S{number}"))
    found = await receipts(session, 500)
    assert [receipt.broadcast for receipt in found] == [f"b{number}" for number in range(500)]
    assert {receipt.stage for receipt in found} == {ACKED}
    assert [name for name, _ in code.seen] == [f"S{number}" for number in range(500)]
    session.cancel()


async def test_a_repeat_is_acknowledged_again_and_not_handled_twice(world: World) -> None:
    instance, code = await recorder(world)
    session = await attach(instance)
    await session.write(signal("b1", "REJECT"))
    first = await receipts(session, 1)
    session.cancel()
    session = await attach(instance)
    await session.write(signal("b1", "REJECT"))
    assert await receipts(session, 1) == first
    assert len(code.seen) == 1
    session.cancel()


async def test_a_rejection_says_why_and_a_defect_says_whose(world: World) -> None:
    instance, _ = await recorder(world)
    session = await attach(instance)
    await session.write(signal("b1", "REJECT"))
    await session.write(signal("b2", "BREAK"))
    refused, broken = await receipts(session, 2)
    assert (refused.stage, refused.error.code, refused.error.message) == (REJECTED, 9, "not today")
    assert (broken.stage, broken.error.code) == (REJECTED, 2)
    session.cancel()


async def test_a_signal_before_assume_is_rejected_and_can_be_sent_again(world: World) -> None:
    instance = await world.instance()
    session = instance.stub.Deliver()
    assert (await session.read()).attached
    await session.write(signal("b1"))
    assert (await receipts(session, 1))[0].stage == REJECTED
    await instance.stub.Assume(await world.request("solo"), timeout=10)
    await session.write(signal("b1"))
    assert (await receipts(session, 1))[0].stage == ACKED
    session.cancel()


async def test_a_newer_session_ends_the_older_and_takes_the_receipts(world: World) -> None:
    instance, code = await recorder(world)
    old = await attach(instance)
    await old.write(signal("b1", "SLOW"))
    await until(lambda: code.seen)
    new = await attach(instance)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await old.read()
    assert ended.value.code() is grpc.StatusCode.ABORTED
    code.may_go_on.set()
    assert [receipt.broadcast for receipt in await receipts(new, 1)] == ["b1"]
    new.cancel()


async def test_half_close_ends_the_session_after_its_receipts(world: World) -> None:
    instance, _ = await recorder(world)
    session = await attach(instance)
    await session.write(signal("b1"))
    assert len(await receipts(session, 1)) == 1
    await session.done_writing()
    assert await session.read() is grpc.aio.EOF
    assert await session.code() is grpc.StatusCode.OK


async def test_a_blocking_handler_holds_up_neither_health_nor_rosters(world: World) -> None:
    instance = await world.agent("solo", spec={"entry_point": f"{AGENTS}:Blocking"})
    session = await attach(instance)
    Blocking.release.clear()
    try:
        await session.write(signal("b1"))
        await session.write(pb.DeliverRequest(roster=world.enlist("mate")))
        roster = instance.runtime.agent().parts.context.roster
        await until(lambda: roster.get("mate"))
        assert await instance.serving()
    finally:
        Blocking.release.set()
    assert (await receipts(session, 1))[0].stage == ACKED
    session.cancel()


async def test_an_older_roster_is_dropped(world: World) -> None:
    instance, _ = await recorder(world)
    session = await attach(instance)
    old = world.enlist("left")
    del world.mates["left"]
    await session.write(pb.DeliverRequest(roster=world.enlist("stays")))
    await session.write(pb.DeliverRequest(roster=old))
    await session.write(signal("b1"))
    await receipts(session, 1)
    roster = instance.runtime.agent().parts.context.roster
    assert [mate.name for mate in roster] == ["solo", "stays"]
    session.cancel()


async def test_a_channel_is_dropped_once_each_time_that_its_mate_is_frozen(world: World) -> None:
    """The next one leads to who wakes the mate, and must not be dropped while that goes on."""
    instance, _ = await recorder(world)
    session = await attach(instance)
    peers = instance.runtime.agent().parts.context.peers

    async def told(frozen_s: int, revision: str) -> None:
        roster = world.enlist("mate")
        for peer in roster.peers:
            if peer.name == "mate" and frozen_s:
                peer.frozen_time.FromSeconds(frozen_s)
        await session.write(pb.DeliverRequest(roster=roster))
        await session.write(signal(revision))
        await receipts(session, 1)

    await told(0, "b1")
    for number, (frozen_s, dropped) in enumerate(((7, True), (7, False), (0, False), (8, True)), 2):
        peers.get("mate")
        before = peers._channels["mate"]
        await told(frozen_s, f"b{number}")
        assert (peers._channels.get("mate") is not before) == dropped, number
    session.cancel()


async def test_a_mate_of_an_older_generation_is_refused_from_the_roster_on(world: World) -> None:
    instance, _ = await recorder(world)
    stub = await world.dial("solo", world.agent_identity("mate", generation=1))
    await stub.ListTools(pb.ListToolsRequest(), timeout=5)
    session = await attach(instance)
    await session.write(pb.DeliverRequest(roster=world.enlist("mate", generation=2)))
    await session.write(signal("b1"))
    await receipts(session, 1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ListTools(pb.ListToolsRequest(), timeout=5)
    assert (refused.value.code(), reason_of(refused.value)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "STALE_GENERATION",
    )
    successor = await world.dial("solo", world.agent_identity("mate", generation=2))
    await successor.ListTools(pb.ListToolsRequest(), timeout=5)
    session.cancel()


async def test_a_renewed_identity_serves_new_connections(world: World) -> None:
    instance, _ = await recorder(world)
    session = await attach(instance)
    renewed = world.identity_message("solo")
    await session.write(pb.DeliverRequest(identity=renewed))
    await session.write(signal("b1"))
    await receipts(session, 1)
    identity = instance.runtime.agent().parts.identity
    assert identity.current().certificate_pem == renewed.certificate_pem
    assert identity.current().token == renewed.token
    stub = await world.dial("solo", world.agent_identity("mate"))
    await stub.ListTools(pb.ListToolsRequest(), timeout=5)
    session.cancel()


async def test_keys_that_came_with_a_renewal_verify_new_tokens(world: World) -> None:
    instance, _ = await recorder(world)
    session = await attach(instance)
    world.mint.rotate()
    await session.write(pb.DeliverRequest(identity=world.identity_message("solo")))
    await session.write(signal("b1"))
    await receipts(session, 1)
    stub = await world.dial("solo", world.agent_identity("mate"))
    await stub.ListTools(pb.ListToolsRequest(), timeout=5)
    session.cancel()


async def test_a_malformed_item_ends_the_session_with_its_reason(world: World) -> None:
    instance, _ = await recorder(world)
    session = instance.channel.stream_stream("/hyperfactory.v1.AgentService/Deliver")()
    for _ in ("attached", "report"):
        await session.read()
    await session.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await session.read()
    assert (ended.value.code(), reason_of(ended.value)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_MESSAGE",
    )
    again = await attach(instance)
    await again.write(signal("b1"))
    assert len(await receipts(again, 1)) == 1
    again.cancel()


async def test_a_session_begins_with_what_the_agent_offers_and_hears_of_each_change(world: World) -> None:
    instance, _ = await recorder(world)
    session = await attach(instance)
    capabilities = instance.runtime.agent().offered

    async def never(_call: Call) -> Outcome:
        return Outcome("")

    def named(*names: str) -> list[Tool]:
        return [Tool(name, "", {"type": "object"}, never, read_only=True, title="T") for name in names]

    for number in range(20):  # a burst is told once
        capabilities.tools.replace("skill/x", named(f"t{number}"))
    first = (await session.read()).report
    assert [tool.name for tool in first.tools if tool.title] == ["t19"]
    condition = types_pb2.Condition(type="McpServer/x", reason="Crashed")
    capabilities.add_conditions(lambda: [condition])
    instance.runtime.agent().capabilities_changed()
    second = (await session.read()).report
    assert list(second.conditions) == [condition]
    assert second.revision > first.revision
    capabilities.tools.replace("skill/x", named("t19"))  # others under the same name, the lists are equal
    capabilities.tools.replace("skill/x", ())
    third = (await session.read()).report
    assert not [tool for tool in third.tools if tool.title]
    session.cancel()


async def test_a_source_cannot_take_the_name_of_anothers_tool(world: World) -> None:
    instance, _ = await recorder(world)
    tools = instance.runtime.agent().offered.tools
    before = list(tools)
    with pytest.raises(AlreadyExists):
        tools.replace("skill/x", [tools.require("read_file", writer=False)])
    assert list(tools) == before
