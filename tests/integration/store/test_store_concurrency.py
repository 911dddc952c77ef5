"""Many writers at once: no gap, no double claim, no overfill, one effect a request."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from support.plans import (
    LEASE_S,
    OWNER,
    agent_plan,
    assemble,
    crew_plan,
    fact,
    fill_pool,
    ready_agent,
    ready_crew,
    request,
    step,
)

from factory_server.core.errors import AlreadyExists, FactoryError, Refused, Stale
from factory_server.core.lifecycle import AgentEvent, AgentState
from factory_server.core.model import CrewFilter, InstanceState, Page
from factory_server.store import PostgresStore
from hyperfactory.v1 import events_pb2

WRITERS = 16
T = TypeVar("T")
E, S = AgentEvent, AgentState


async def together(calls: Sequence[Awaitable[T]]) -> list[T | FactoryError]:
    """Run calls at once; native errors are results."""

    async def caught(call: Awaitable[T]) -> T | FactoryError:
        try:
            return await call
        except FactoryError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(caught(call)) for call in calls]
    return [task.result() for task in tasks]


async def test_sixteen_writers_leave_no_gap_and_readers_see_a_prefix(replicas: list[PostgresStore]) -> None:
    crew = await assemble(replicas[0])
    writing = True
    torn = []

    async def write(writer: int) -> None:
        for _ in range(20):
            await replicas[writer % 3].append(crew.id, [events_pb2.Event(actor=str(writer))] * 2)

    async def read() -> None:
        after = 0
        while writing or after < (await replicas[0].event_bounds(crew.id))[1]:
            for event in await replicas[1].read_events(crew.id, after, 50):
                torn.append(event.sequence - after - 1)
                after = event.sequence

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read())
        async with asyncio.TaskGroup() as writers:
            for writer in range(WRITERS):
                writers.create_task(write(writer))
        writing = False
        await reader
    assert len(torn) == crew.last_sequence + WRITERS * 20 * 2
    assert not any(torn)


async def test_an_aborted_writer_gives_its_numbers_back(store: PostgresStore) -> None:
    crew = await assemble(store)
    taken = crew.agents[0].name

    async def add(number: int) -> object:
        # Every other one fails at its constraint, after the crew's row was locked.
        plan = agent_plan(taken if number % 2 else f"n-{number}")
        return await store.add_agent(crew.id, plan, None, "a", OWNER, lease_s=LEASE_S)

    done = await together([add(number) for number in range(WRITERS)])
    assert sum(isinstance(result, AlreadyExists) for result in done) == WRITERS // 2
    events = await store.read_events(crew.id, 0, 1000)
    assert [event.sequence for event in events] == list(range(1, crew.last_sequence + WRITERS // 2 + 1))


async def test_the_firehose_loses_nothing_while_transactions_overlap(replicas: list[PostgresStore]) -> None:
    rng = random.Random(7)
    crews = [await assemble(replicas[0]) for _ in range(4)]
    mark = await replicas[0].latest_mark()
    writing = True
    seen: list[tuple[str, int]] = []

    async def write(writer: int) -> None:
        for _ in range(15):
            crew = rng.choice(crews)
            await replicas[writer % 3].append(crew.id, [events_pb2.Event()] * rng.randint(1, 3))

    async def read() -> None:
        nonlocal mark
        while True:
            last = not writing
            batch, mark = await replicas[2].read_all_events(mark, 7)
            seen.extend((event.crew, event.sequence) for event in batch)
            if last and not batch:
                return

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read())
        async with asyncio.TaskGroup() as writers:
            for writer in range(WRITERS):
                writers.create_task(write(writer))
        writing = False
        await reader
    for crew in crews:
        head = (await replicas[0].event_bounds(crew.id))[1]
        mine = [number for own, number in seen if own == crew.id]
        assert mine == list(range(crew.last_sequence + 1, head + 1))


async def test_no_warm_instance_is_claimed_twice(replicas: list[PostgresStore]) -> None:
    warm = await fill_pool(replicas[0], 20)
    crews = [assemble(replicas[n % 3], agents=3) for n in range(WRITERS)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(crew) for crew in crews]
    agents = [agent for task in tasks for agent in task.result().agents]
    carriers = Counter(agent.instance.id for agent in agents if agent.instance)
    assert len(agents) == len(carriers) == WRITERS * 3
    assert sorted(name for name in carriers if name in warm) == sorted(warm)
    pool = (await replicas[0].get_pools())[0]
    assert (pool.claimed, pool.missed, pool.ready) == (20, WRITERS * 3 - 20, 0)


async def test_many_fillers_make_exactly_the_target(replicas: list[PostgresStore]) -> None:
    await replicas[0].set_pool("python", 25, None, "a")

    async def fill(store: PostgresStore) -> None:
        for _ in range(5):
            for intent in await store.plan_refill("python", 4, OWNER):
                assert await store.pool_started(fact(intent.id))

    async with asyncio.TaskGroup() as group:
        for number in range(9):
            group.create_task(fill(replicas[number % 3]))
    instances = await replicas[0].list_instances()
    assert [instance.state for instance in instances] == [InstanceState.WARM] * 25


async def test_one_request_makes_one_crew_whoever_gives_up(replicas: list[PostgresStore]) -> None:
    rng = random.Random(3)
    key = request()

    async def call(store: PostgresStore) -> str:
        made = await store.assemble(crew_plan(2), key, "a", OWNER, lease_s=LEASE_S)
        return made.crew.id

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call(replicas[n % 3])) for n in range(WRITERS)]
        for task in rng.sample(tasks, 6):
            for _ in range(rng.randint(1, 30)):
                await asyncio.sleep(0)
            task.cancel()
    answers = {task.result() for task in tasks if not task.cancelled()}
    crews = await replicas[0].list_crews(CrewFilter(), Page(100))
    assert {crew.id for crew in crews} == answers
    assert len(answers) == 1


async def test_one_of_many_replacers_wins(replicas: list[PostgresStore]) -> None:
    agent = await ready_agent(replicas[0])
    done = await replicas[0].step(agent.crew, [step(agent, E.HEALTH_FAILED)])
    sick = done.results[0].agent
    assert sick is not None
    calls = [replicas[n % 3].step(sick.crew, [step(sick, E.REPLACE)]) for n in range(WRITERS)]
    results = await together(calls)
    won = [r for r in results if not isinstance(r, FactoryError) and r.results[0].agent is not None]
    assert len(won) == 1
    assert (await replicas[0].get_agent(agent.id)).generation == 2


async def test_one_of_many_callers_gets_the_lease(replicas: list[PostgresStore]) -> None:
    agent = await ready_agent(replicas[0])
    calls = [replicas[n % 3].acquire(agent.id, None, "a", holder=f"h{n}", lease_s=60) for n in range(WRITERS)]
    results = await together(calls)
    refused = [result for result in results if isinstance(result, Refused)]
    assert {error.reason for error in refused} == {"LEASE_HELD"}
    assert len(refused) == WRITERS - 1


async def test_a_crew_is_leased_to_one_reconciler(replicas: list[PostgresStore]) -> None:
    made = [await assemble(replicas[0]) for _ in range(12)]
    await replicas[0].release_crews(OWNER)
    calls = [replicas[n % 3].lease_crews(f"f{n}", lease_s=60, limit=5) for n in range(WRITERS)]
    leased = [crew for got in await together(calls) if not isinstance(got, FactoryError) for crew in got]
    assert sorted(leased) == sorted(crew.id for crew in made)


async def test_nothing_deadlocks_when_everything_touches_one_crew(replicas: list[PostgresStore]) -> None:
    await replicas[0].set_pool("python", 5, None, "a")
    crew = await ready_crew(replicas[0], agents=4)
    rng = random.Random(11)

    async def worker(store: PostgresStore, number: int) -> list[FactoryError]:
        errors = []
        for _ in range(12):
            agent = rng.choice((await store.get_crew(crew.id)).agents)
            event = rng.choice([E.HEALTH_FAILED, E.REPLACE, E.INSTANCE_STARTED, E.HEALTH_OK])
            own = agent.instance.id if agent.instance else "none"
            more = {"sandbox": fact(own)} if event is E.INSTANCE_STARTED else {}
            calls = [
                store.step(crew.id, [step(agent, event, **more)]),
                store.release_instance(own) if number % 4 == 0 else store.get_agent(agent.id),
                store.plan_refill("python", 2, OWNER),
                store.append(crew.id, [events_pb2.Event()]),
            ]
            errors += [r for r in await together(calls) if isinstance(r, FactoryError)]
            for instance in await store.list_instances():
                if instance.state is InstanceState.STARTING and not instance.agent:
                    await store.pool_started(fact(instance.id))
        return errors

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker(replicas[n % 3], n)) for n in range(8)]
    errors = [error for task in tasks for error in task.result()]
    # A release that slips between a step's read and its write is the one race that may be lost.
    assert all(isinstance(error, Stale) and "was first" in str(error) for error in errors), errors
    head = (await replicas[0].event_bounds(crew.id))[1]
    events = await replicas[0].read_events(crew.id, 0, 100_000)
    assert [event.sequence for event in events] == list(range(1, head + 1))
