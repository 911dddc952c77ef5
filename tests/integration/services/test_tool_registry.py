"""The registry knows what agents last really said: at once here, soon elsewhere, still after a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from google.protobuf.struct_pb2 import Struct
from support.asking import ACTOR, assembled, disbanded, request_id, stopped
from support.site import Plant, Site, open_site, until
from support.tool_agents import ToolAgents, tool
from support.valkey import ValkeyServer

from factory_server.core.errors import Denied, NotFound
from factory_server.core.lifecycle import AgentState
from factory_server.core.model import Page
from factory_server.core.tools import Entry
from factory_server.services import hibernate, tools_first
from factory_server.services.reach import Reach
from factory_server.services.tool_calls import ToolCalls
from hyperfactory.v1 import events_pb2, factory_service_pb2

ALL = Page(1000)
CODER = frozenset({"coder"})
REVIEWER = frozenset({"reviewer"})
VISIBLE_MAX_S = 0.1
GONE_MAX_S = 1.0
BUSY_MACHINE = 5
"""Times that a machine under test may be slower than the promise; the promise itself is measured in bench/."""


@pytest.fixture
def agents() -> ToolAgents:
    return ToolAgents(first=(tool("look", read_only=True), tool("write")))


@pytest.fixture
async def site(postgres_url: str, valkey: ValkeyServer, agents: ToolAgents) -> AsyncIterator[Site]:
    async with open_site(postgres_url, valkey.url, agent=agents.run) as opened:
        yield opened


async def listed(plant: Plant, crew: str = "", scopes: frozenset[str] = CODER) -> list[Entry]:
    return list(await plant.factory.tools.list(crew, "", scopes, ALL))


async def names(plant: Plant, crew: str = "", scopes: frozenset[str] = CODER) -> list[str]:
    return [entry.name for entry in await listed(plant, crew, scopes)]


async def all_listed(plant: Plant, crew: str, count: int) -> list[Entry]:
    async def there() -> list[Entry]:
        found = await listed(plant, crew)
        return found if len(found) == count and not any(e.stale for e in found) else []

    found: list[Entry] = await until(there, what=f"{count} fresh tools")
    return found


def calls_of(plant: Plant) -> ToolCalls:
    factory = plant.factory
    return ToolCalls(plant.parts, factory.sessions, factory.tools, Reach(plant.parts, factory.registry))


async def asleep(plant: Plant, agent: str) -> None:
    request = factory_service_pb2.HibernateAgentRequest(request_id=request_id(), agent=agent)
    await hibernate.hibernate(plant.parts, plant.reconciler, request, ACTOR)


async def test_a_crew_is_listed_by_public_names_and_scope(plant: Plant):
    crew = await assembled(plant, agents=2)
    await all_listed(plant, crew.id, 4)
    assert await names(plant, crew.id) == ["w-1__look", "w-1__write", "w-2__look", "w-2__write"]
    assert await names(plant, crew.id, REVIEWER) == ["w-1__look", "w-2__look"]
    one = crew.agents[0]
    only = await plant.factory.tools.list("", one.id, CODER, ALL)
    assert {entry.agent_name for entry in only} == {one.name}
    with pytest.raises(NotFound):
        await listed(plant, "c-unknown")


async def test_a_crew_that_has_just_become_ready_is_listed_whole(plant: Plant):
    """Without a look of the test's own at whether the agents have said it yet."""
    for number in range(3):
        crew = await assembled(plant, name=f"fresh-{number}", agents=3)
        assert len(await listed(plant, crew.id)) == 6
        found = await plant.factory.tools.find(crew.id, "w-3__look")
        assert found.agent_name == "w-3"


async def test_who_has_never_said_anything_delays_a_list_once(plant: Plant, agents: ToolAgents, monkeypatch):
    monkeypatch.setattr(tools_first, "FIRST_WORD_S", 0.2)
    monkeypatch.setattr(plant.factory.sessions, "on_report", lambda *_: None)
    crew = await assembled(plant)
    began = time.monotonic()
    assert await listed(plant, crew.id) == []
    assert time.monotonic() - began < 0.2 * BUSY_MACHINE
    began = time.monotonic()
    for _ in range(20):
        assert await listed(plant, crew.id) == []
    assert time.monotonic() - began < 0.2 * BUSY_MACHINE


async def test_pages_join_to_the_whole(plant: Plant):
    crew = await assembled(plant, agents=3)
    whole = [e.place for e in await all_listed(plant, crew.id, 6)]
    after, found = "", []
    while True:
        page = list(await plant.factory.tools.list("", "", CODER, Page(2, after)))
        found += [e.place for e in page[:2]]
        if len(page) <= 2:
            break
        after = found[-1]
    assert found == whole


async def test_a_change_reaches_a_watcher_at_once_and_the_log(plant: Plant, agents: ToolAgents):
    crew = await assembled(plant, agents=1)
    await all_listed(plant, crew.id, 2)
    watching = plant.factory.tools.watch(crew.id, CODER, bookmark_s=60, draining=asyncio.Event())
    first = await anext(watching)
    assert [e.name for e in first.upserted] == ["w__look", "w__write"]
    assert (await anext(watching)).synced
    took_s = []
    for number in range(5):
        began = time.monotonic()
        agents.live["w"].offer(tool("look", read_only=True), tool(f"new{number}"))
        change = await anext(watching)
        took_s.append(time.monotonic() - began)
        assert [e.name for e in change.upserted] == [f"w__new{number}"]
        assert [name for _, name in change.removed] == [f"w__new{number - 1}" if number else "w__write"]
    assert min(took_s) < VISIBLE_MAX_S
    assert max(took_s) < VISIBLE_MAX_S * BUSY_MACHINE
    await watching.aclose()

    async def told() -> bool:
        events = [e.decode() for e in await plant.store.read_events(crew.id, 0, 1000)]
        changes = [e.tools for e in events if e.type == events_pb2.EVENT_TYPE_TOOLS]
        return bool(changes) and "new4" in changes[-1].added and len(changes) <= 6

    await until(told, what="the log tells of the last change, and of none twice")


async def test_a_watcher_of_a_narrow_scope_hears_nothing_of_the_rest(plant: Plant, agents: ToolAgents):
    crew = await assembled(plant, agents=1)
    await all_listed(plant, crew.id, 2)
    watching = plant.factory.tools.watch(crew.id, REVIEWER, bookmark_s=0.2, draining=asyncio.Event())
    assert [e.name for e in (await anext(watching)).upserted] == ["w__look"]
    assert (await anext(watching)).synced
    agents.live["w"].offer(tool("look", read_only=True), tool("secret"))
    await until(lambda: names(plant, crew.id), what="known")
    heard = await anext(watching)
    assert not heard.upserted
    assert not heard.removed
    await watching.aclose()


async def test_tools_of_agents_that_rest_are_stale_and_of_the_gone_are_gone(plant: Plant):
    crew = await assembled(plant, agents=2)
    await all_listed(plant, crew.id, 4)
    one, two = crew.agents
    await asleep(plant, one.id)

    async def stale() -> bool:
        return {e.agent_name for e in await listed(plant, crew.id) if e.stale} == {one.name}

    await until(stale, what="the sleeper's tools are stale")
    began = time.monotonic()
    await stopped(plant, two.id)
    await until(lambda: _without(plant, crew.id, two.name), what="the leaver's tools are gone")
    assert time.monotonic() - began < GONE_MAX_S * BUSY_MACHINE
    await disbanded(plant, crew.id)
    await until(lambda: _empty(plant), what="nothing is left")


async def _without(plant: Plant, crew: str, agent: str) -> bool:
    return agent not in {e.agent_name for e in await listed(plant, crew)}


async def _empty(plant: Plant) -> bool:
    return not await listed(plant)


async def test_a_restarted_factory_lists_at_once_and_says_what_is_stale(site: Site):
    first = await site.plant("f1")
    crew = await assembled(first, agents=1)
    await all_listed(first, crew.id, 2)

    async def stored() -> bool:
        return len((await first.store.offer_delta("")).offers) == 1

    await until(stored)
    await first.crash()
    held = asyncio.Event()

    class Deaf:
        """A line whose agent says nothing of its tools until it may."""

        def __init__(self, line):
            self._line = line

        def __getattr__(self, name):
            return getattr(self._line, name)

        async def attend(self):
            async for said in self._line.attend():
                if said.HasField("report"):
                    await held.wait()
                yield said

    second = await site.plant("f1", wrap=lambda name, port: Deaf(port) if name == "line" else port)
    assert [(e.name, e.stale) for e in await listed(second, crew.id)] == [
        ("w__look", True),
        ("w__write", True),
    ]
    held.set()
    await all_listed(second, crew.id, 2)


async def test_another_replica_knows_soon(site: Site, agents: ToolAgents):
    one, two = await site.plant("f1"), await site.plant("f2")
    crew = await assembled(one, agents=1)
    await all_listed(two, crew.id, 2)
    watching = two.factory.tools.watch(crew.id, CODER, bookmark_s=60, draining=asyncio.Event())
    await anext(watching)
    assert (await anext(watching)).synced
    began = time.monotonic()
    agents.live["w"].offer(tool("other"))
    change = await anext(watching)
    assert [e.name for e in change.upserted] == ["w__other"]
    assert time.monotonic() - began < VISIBLE_MAX_S * BUSY_MACHINE
    await watching.aclose()
    updates = [u async for u in calls_of(two).call(change.upserted[0], Struct(), 5)]
    assert updates[-1].result.text == "w other {}"


async def test_an_agent_that_changes_its_mind_all_the_time_does_not_fill_the_log(
    plant: Plant, agents: ToolAgents
):
    crew = await assembled(plant, agents=1)
    await all_listed(plant, crew.id, 2)
    for number in range(300):
        agents.live["w"].offer(tool(f"t{number}"))
        await asyncio.sleep(0.002)
    await until(lambda: _names_are(plant, crew.id, ["w__t299"]), what="the last one is known")
    events = [e.decode() for e in await plant.store.read_events(crew.id, 0, 1000)]
    assert 1 < sum(e.type == events_pb2.EVENT_TYPE_TOOLS for e in events) <= 11


async def _names_are(plant: Plant, crew: str, wanted: list[str]) -> bool:
    return await names(plant, crew) == wanted


async def test_a_call_goes_to_the_agent_and_comes_back(plant: Plant, agents: ToolAgents):
    crew = await assembled(plant, agents=2)
    await all_listed(plant, crew.id, 4)
    calls = calls_of(plant)
    entry = await calls.allowed(crew.id, "w-2__write", CODER)
    arguments = Struct()
    arguments["text"] = "hello"
    updates = [u async for u in calls.call(entry, arguments, 5)]
    assert [u.WhichOneof("update") for u in updates] == ["progress", "result"]
    assert updates[-1].result.text == "w-2 write {'text': 'hello'}"
    with pytest.raises(Denied) as caught:
        await calls.allowed(crew.id, "w-2__write", REVIEWER)
    assert caught.value.reason == "SCOPE_MISSING"
    with pytest.raises(NotFound):
        await calls.allowed(crew.id, "w-2__nothing", CODER)


async def test_a_call_that_ends_early_is_cancelled_at_the_agent(plant: Plant, agents: ToolAgents):
    agents.first = (tool("hang"),)
    crew = await assembled(plant, agents=1)
    [entry] = await all_listed(plant, crew.id, 1)
    updates = calls_of(plant).call(entry, Struct(), 30)
    assert (await anext(updates)).HasField("progress")
    await updates.aclose()
    await until(lambda: agents.live["w"].cancelled, what="the agent's call is cancelled")


async def test_a_sleeper_is_woken_by_a_call(plant: Plant, agents: ToolAgents):
    crew = await assembled(plant, agents=1)
    entry = (await all_listed(plant, crew.id, 2))[0]
    await asleep(plant, entry.agent)
    updates = [u async for u in calls_of(plant).call(entry, Struct(), 20)]
    assert updates[-1].result.text == "w look {}"
    row = await plant.store.get_agent(entry.agent)
    assert (row.state, row.generation) == (AgentState.READY, 2)


async def test_a_call_that_meets_an_agent_falling_asleep_is_made_again(plant: Plant, agents: ToolAgents):
    crew = await assembled(plant, agents=1)
    entry = (await all_listed(plant, crew.id, 2))[0]
    agents.live["w"].drowsy = 3
    updates = [u async for u in calls_of(plant).call(entry, Struct(), 20)]
    assert updates[-1].result.text == "w look {}"
    assert agents.live["w"].calls == ["look"]
