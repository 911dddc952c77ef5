"""The crew's bus as agents use it: topics, channels, context; late, broken and renewed links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent_runtime.bus import Access, Bus, Versioned
from agent_runtime.limits import BUS_SUBSCRIPTIONS_MAX
from tests.integration.agent_runtime.parts import CREW, Valkey, World, until
from wire.errors import Exhausted, Invalid, Refused, Unavailable

MATE = f"crew/{CREW}/agent/ada"


async def bus_of(world: World, name: str = "ada", generation: int = 1) -> Bus:
    assert world.bus is not None
    granted = await world.bus.grant(CREW, name, generation)
    path = str(world.peers / granted.socket)
    bus = Bus(
        Access(path, granted.username, granted.password, granted.prefix, name, f"crew/{CREW}/agent/{name}")
    )
    world.stack.callback(bus.close)
    return bus


async def take(messages: AsyncIterator[Any], count: int) -> list[Any]:
    """So many items, then the generator is closed."""
    found: list[Any] = []
    async with asyncio.timeout(10):
        async for message in messages:
            found.append(message)
            if len(found) == count:
                break
    return found


async def test_a_topic_keeps_what_was_published_before_anyone_listened(bussed: World) -> None:
    bus = await bus_of(bussed)
    ids = [await bus.publish("news", {"n": n}) for n in range(3)]
    found = await take(bus.subscribe("news", after="0"), 3)
    assert [(m.id, m.sender, m.data) for m in found] == [(i, "ada", {"n": n}) for n, i in enumerate(ids)]
    assert [m.data["n"] for m in await bus.read("news", after=ids[0])] == [1, 2]


async def test_subscribing_from_now_on_skips_the_past(bussed: World) -> None:
    bus, other = await bus_of(bussed), await bus_of(bussed, "bob")
    await bus.publish("news", "old")
    subscription = other.subscribe("news")
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(take(subscription, 1))
        await until(lambda: other._places.taken == 1)
        await _publish_until(bus, "news", "new", taking)
    assert taking.result()[0].data == "new"


async def _publish_until(bus: Bus, topic: str, data: Any, done: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(10):
        while not done.done():
            await bus.publish(topic, data)
            await asyncio.sleep(0.01)


async def test_channels_reach_who_listens_now(bussed: World) -> None:
    bus, other = await bus_of(bussed), await bus_of(bussed, "bob")
    assert await bus.send("hall", "nobody hears") == 0
    async with asyncio.TaskGroup() as group:
        hearing = group.create_task(take(other.listen("hall"), 2))
        heard = 0
        async with asyncio.timeout(10):
            while heard < 2:
                heard += await bus.send("hall", {"n": heard})
                await asyncio.sleep(0.002)
    assert [(m.sender, m.data) for m in hearing.result()] == [("ada", {"n": 0}), ("ada", {"n": 1})]


async def test_context_versions_rise_and_a_wrong_expectation_is_refused(bussed: World) -> None:
    bus = await bus_of(bussed)
    assert await bus.get("plan") == Versioned(None, 0)
    assert await bus.put("plan", {"a": [1]}, if_version=0) == 1
    assert await bus.put("plan", "b") == 2
    with pytest.raises(Refused) as refused:
        await bus.put("plan", "c", if_version=1)
    assert (refused.value.reason, refused.value.metadata) == ("VERSION_MISMATCH", {"version": "2"})
    assert await bus.get("plan") == Versioned("b", 2)


async def test_the_factory_sees_the_same_context_and_its_log(bussed: World) -> None:
    bus = await bus_of(bussed)
    assert bussed.bus is not None
    await bus.put("plan", {"a": 1})
    await bussed.bus.put_context(CREW, "plan", '"theirs"', "operator/ada", 1)
    assert await bus.get("plan") == Versioned("theirs", 2)
    await bus.remove("plan", if_version=2)
    assert await bus.get("plan") == Versioned(None, 0)
    assert await bus.put("plan", None, if_version=0) == 4
    rows, _ = await bussed.bus.read_context_log(CREW, "", block_s=0.1)
    assert [(row.key, row.value, row.version, row.actor) for row in rows] == [
        ("plan", '{"a":1}', 1, MATE),
        ("plan", '"theirs"', 2, "operator/ada"),
        ("plan", None, 3, MATE),
        ("plan", "null", 4, MATE),
    ]


async def test_concurrent_writers_lose_no_update(bussed: World) -> None:
    buses = [await bus_of(bussed, name) for name in ("ada", "bob", "cy")]

    async def add(bus: Bus) -> None:
        for _ in range(10):
            while True:
                present = await bus.get("sum")
                try:
                    await bus.put("sum", (present.value or 0) + 1, if_version=present.version)
                except Refused:
                    continue
                break

    async with asyncio.TaskGroup() as group:
        for bus in buses:
            group.create_task(add(bus))
    assert await buses[0].get("sum") == Versioned(30, 30)


async def test_watching_sees_others_writes(bussed: World) -> None:
    bus, other = await bus_of(bussed), await bus_of(bussed, "bob")
    await bus.put("plan", "before")
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(take(other.watch(), 1))
        async with asyncio.timeout(10):
            while not watching.done():
                await bus.put("plan", "after")
                await asyncio.sleep(0.01)
    [change] = watching.result()
    assert (change.key, change.value, change.actor) == ("plan", "after", MATE)


async def test_another_crews_keys_are_refused(bussed: World) -> None:
    bus = await bus_of(bussed)
    foreign = Bus(
        Access(bus._access.path, bus._access.username, bus._access.password, "crew:c2:", "ada", MATE)
    )
    for attempt in (
        foreign.get("plan"),
        foreign.publish("t", 1),
        foreign.put("plan", 1),
        foreign.send("c", 1),
    ):
        with pytest.raises(Refused) as refused:
            await attempt
        assert refused.value.reason == "POLICY_DENIED"
    foreign.close()
    assert await bus.put("plan", 1) == 1  # the connection that was refused does not poison the next


async def test_a_revoked_generation_is_cut_off(bussed: World) -> None:
    bus = await bus_of(bussed)
    await bus.put("plan", 1)
    assert bussed.bus is not None
    await bussed.bus.revoke(CREW, "ada", 1)
    with pytest.raises(Refused):
        await bus.put("plan", 2)


async def test_a_bus_that_appears_late_is_waited_for(world: World, valkey: Valkey) -> None:
    from factory_server.bus import RedisBus

    world.valkey, world.bus = valkey, RedisBus(valkey.url, secret=b"test")
    bus = await bus_of(world)
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(bus.put("plan", "late"))
        await until(lambda: not writing.done())
        world.wire_bus()
    assert writing.result() == 1
    await world.bus.close()


async def test_without_a_bus_a_command_fails_in_time(world: World) -> None:
    bus = Bus(Access(str(world.peers / "bus.sock"), "u", "p", "crew:c1:", "ada", MATE))
    with pytest.raises(Unavailable):
        await bus.ready(timeout_s=0.2)
    bus.close()


async def test_a_restarted_bus_is_found_again_and_subscriptions_go_on(bussed: World) -> None:
    bus, other = await bus_of(bussed), await bus_of(bussed, "bob")
    assert bussed.valkey is not None
    assert bussed.bus is not None
    subscription = other.subscribe("news", after="0")
    await bus.publish("news", 1)
    first = await anext(subscription)
    await bussed.valkey.stop()
    await bussed.valkey.start()
    bussed.wire_bus()
    for name in ("ada", "bob"):
        await bussed.bus.grant(CREW, name, 1)
    await bus.publish("news", 2)
    async with asyncio.timeout(10):
        second = await anext(subscription)
    assert (first.data, second.data) == (1, 2)
    await subscription.aclose()


async def test_what_is_no_json_or_no_name_is_refused_before_it_is_sent(bussed: World) -> None:
    bus = await bus_of(bussed)
    for attempt in (bus.publish("a:b", 1), bus.publish("", 1), bus.publish("t", object()), bus.put("", 1)):
        with pytest.raises(Invalid):
            await attempt
    with pytest.raises(Exhausted):
        await bus.put("big", "x" * 300_000)


async def test_subscriptions_are_bounded_and_their_places_come_free(bussed: World) -> None:
    bus = await bus_of(bussed)
    await bus.publish("news", 1)
    held = [bus.subscribe("news", after="0") for _ in range(BUS_SUBSCRIPTIONS_MAX)]
    for subscription in held:
        await anext(subscription)
    with pytest.raises(Exhausted):
        bus.subscribe("news")
    held.pop().close()
    async for message in bus.subscribe("news", after="0"):
        assert message.data == 1
        break  # leaving the loop gives the place back
    assert (await anext(bus.subscribe("news", after="0"))).data == 1
    for subscription in held:
        subscription.close()
