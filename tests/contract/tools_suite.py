"""What every store must do about agents' tools: the newest stands, and the log tells of changes alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from support.plans import OWNER, advance, ready_agent

from factory_server.core import tools
from factory_server.core.lifecycle import AgentEvent
from factory_server.core.model import AgentRow
from factory_server.core.ports import Store
from hyperfactory.v1 import agent_service_pb2, events_pb2, types_pb2

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def offer_of(agent: AgentRow, *names: str, revision: int = 1) -> tools.Offer:
    report = agent_service_pb2.AgentReport(
        revision=revision, tools=[agent_service_pb2.Tool(name=name) for name in names]
    )
    return tools.offered(agent.id, agent.crew, agent.generation, report, heard_at=NOW, heard_by=OWNER)


async def told(store: Store, crew: str) -> list[events_pb2.ToolsChange]:
    events = [e.decode() for e in await store.read_events(crew, 0, 1000)]
    return [e.tools for e in events if e.type == events_pb2.EVENT_TYPE_TOOLS]


class ToolsSuite:
    """Offers."""

    async def test_an_offer_reads_back_and_is_heard_while_its_hearer_keeps_the_crew(
        self, store: Store
    ) -> None:
        agent = await ready_agent(store)
        said = offer_of(agent, "a", "b")
        await store.record_offers(agent.crew, [said])
        assert list((await store.offer_delta("")).offers) == [tools.KnownOffer(said, heard=True)]
        elsewhere = replace(said, heard_by="another")
        await store.record_offers(agent.crew, [elsewhere])
        assert list((await store.offer_delta("")).offers) == [tools.KnownOffer(elsewhere, heard=False)]

    async def test_the_log_tells_of_a_change_once(self, store: Store) -> None:
        agent = await ready_agent(store)
        await store.record_offers(agent.crew, [offer_of(agent, "a")])
        await store.record_offers(agent.crew, [offer_of(agent, "a", revision=2)])
        await store.record_offers(agent.crew, [offer_of(agent, "b", revision=3)])
        changes = await told(store, agent.crew)
        assert [(list(c.added), list(c.removed)) for c in changes] == [(["a"], []), (["b"], ["a"])]

    async def test_the_log_tells_when_a_condition_turns_and_not_when_its_sentence_does(
        self, store: Store
    ) -> None:
        agent = await ready_agent(store)
        for revision, (reason, message) in enumerate(
            [("Starting", ""), ("Crashed", "one"), ("Crashed", "two"), ("Serving", "")], start=1
        ):
            said = offer_of(agent, "a", revision=revision)
            told_of = types_pb2.Condition(type="McpServer/x", reason=reason, message=message)
            await store.record_offers(agent.crew, [replace(said, conditions=(told_of,))])
        events = [e.decode() for e in await store.read_events(agent.crew, 0, 1000)]
        turned = [e for e in events if e.type == events_pb2.EVENT_TYPE_CONDITION]
        assert [e.condition.reason for e in turned] == ["Starting", "Crashed", "Serving"]
        assert {e.agent for e in turned} == {agent.id}

    async def test_an_older_offer_changes_nothing(self, store: Store) -> None:
        agent = await ready_agent(store)
        await store.record_offers(agent.crew, [offer_of(agent, "new", revision=5)])
        await store.record_offers(agent.crew, [offer_of(agent, "old", revision=4)])
        known = (await store.offer_delta("")).offers
        assert [t.name for k in known for t in k.offer.tools] == ["new"]
        assert len(await told(store, agent.crew)) == 1

    async def test_an_agent_on_its_way_out_offers_nothing(self, store: Store) -> None:
        [agent] = await advance(store, [await ready_agent(store)], AgentEvent.SHUTDOWN)
        await store.record_offers(agent.crew, [offer_of(agent, "a")])
        assert not (await store.offer_delta("")).offers

    async def test_a_delta_brings_what_came_since_and_nothing_of_the_gone(self, store: Store) -> None:
        agent, other = await ready_agent(store), await ready_agent(store)
        await store.record_offers(agent.crew, [offer_of(agent, "a")])
        mark = (await store.offer_delta("")).mark
        await store.record_offers(other.crew, [offer_of(other, "b")])
        fresh = {k.offer.agent for k in (await store.offer_delta(mark)).offers}
        assert other.id in fresh
        gone = await advance(store, [agent], AgentEvent.SHUTDOWN)
        await advance(store, gone, AgentEvent.DRAINED)
        assert {k.offer.agent for k in (await store.offer_delta("")).offers} == {other.id}
