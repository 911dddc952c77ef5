"""Reads that are made together answer each caller by itself, and none of them with what was before its call."""

from __future__ import annotations

import asyncio

import pytest
from support.plans import assemble, ready_agent, request

from factory_server.core.errors import NotFound, Unavailable
from factory_server.core.lifecycle import AgentState
from factory_server.store import PostgresStore

READERS = 40


async def test_each_reader_gets_its_own_agent_and_who_asks_for_nobody_is_told(store: PostgresStore) -> None:
    crew = await assemble(store)
    wanted = [agent.id for agent in crew.agents] * READERS

    async def read(agent: str) -> None:
        assert (await store.get_agent(agent)).id == agent
        with pytest.raises(NotFound, match=f"nobody-{agent}"):
            await store.get_agent(f"nobody-{agent}")

    async with asyncio.TaskGroup() as group:
        for agent in wanted:
            group.create_task(read(agent))


async def test_whoever_has_written_reads_what_was_written(store: PostgresStore) -> None:
    agent = await ready_agent(store)
    ended = False

    async def crowd() -> None:
        while not ended:
            await store.get_agent(agent.id)

    async with asyncio.TaskGroup() as group:
        for _ in range(READERS):
            group.create_task(crowd())
        for _ in range(10):
            held = await store.acquire(agent.id, request(), "ada", holder="ada", lease_s=60)
            assert held == await store.get_agent(agent.id)
            assert held.state is AgentState.BUSY
            await store.release(agent.id, agent.generation, request(), "ada", holder="ada")
            assert (await store.get_agent(agent.id)).state is AgentState.READY
        ended = True


async def test_a_reader_that_leaves_takes_nothing_from_the_others(store: PostgresStore) -> None:
    crew = await assemble(store)
    agent = crew.agents[0].id
    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(store.get_agent(agent)) for _ in range(READERS)]
        await asyncio.sleep(0)
        for leaver in reads[::2]:
            leaver.cancel()
    assert [read.result().id for read in reads[1::2]] == [agent] * (READERS // 2)
    assert (await store.get_agent(agent)).id == agent


async def test_nobody_is_left_waiting_by_a_store_that_closes(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    await store.open()
    crew = await assemble(store)

    async def read() -> str:
        try:
            return (await store.get_agent(crew.agents[0].id)).id
        except (Unavailable, asyncio.CancelledError):
            return "closed"

    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(read()) for _ in range(READERS)]
        await asyncio.sleep(0)
        await store.close()
    assert {task.result() for task in reads} <= {crew.agents[0].id, "closed"}
