"""Tasks of a factory, ended by another one on the same store, and watched while a model answers."""

from __future__ import annotations

import asyncio

import pytest
from support.asking import ACTOR, assembled, request_id, task
from support.site import RUNTIMES, Plant, Site, until
from support.upstream import Turn, Upstream, delta, end, upstream

from agent_runtime.runtime import Runtime
from factory_server.core import model
from factory_server.core.errors import Unavailable
from factory_server.services import profiles, tasks
from hyperfactory.v1 import agent_service_pb2, profile_service_pb2, types_pb2

ORDER = {"mission": "m", "start": 0, "stop": 9, "parts": 1, "claimed": 4}
"""A reviewer waits for results, which nobody publishes here."""
AT_ONCE_S = 2.0
"""Far below a renewal; it takes about 20 ms where nothing else runs."""


def runtime_of(site: Site, crew: model.CrewRow) -> Runtime:
    instance = crew.agents[0].instance
    assert instance is not None
    return RUNTIMES[site.host.instances[instance.id]]


async def reviewing(plant: Plant, site: Site) -> tuple[Runtime, model.TaskRow]:
    """An agent at work on a task that does not end by itself."""
    crew = await assembled(plant, members=[{"name": "solo", "profile": "reviewer"}])
    row = await task(plant, crew.id, 60, **ORDER)
    runtime = runtime_of(site, crew)
    await until(lambda: len(runtime.agent().tasks) == 1, what="the agent works")
    return runtime, row


async def test_a_task_cancelled_by_another_factory_ends_at_once(site: Site):
    one, two = await site.plant("f1"), await site.plant("f2")
    runtime, row = await reviewing(one, site)
    ended = await two.factory.tasks.cancel(row, ACTOR)
    await until(lambda: len(runtime.agent().tasks) == 0, what="its work has ended", within_s=AT_ONCE_S)

    result = agent_service_pb2.TaskResult.FromString(ended.result)
    assert (ended.phase, result.status.message) == ("FAILED", f"cancelled by {ACTOR}")
    async for update in one.factory.tasks.updates(row):
        last = update
    assert last == ended, "who carried it changes nothing of how it ended"


async def talker(plant: Plant, upstream: Upstream) -> model.CrewRow:
    """A crew of one, for which this endpoint answers."""
    spec = types_pb2.ProfileSpec(model=types_pb2.Model(base_url=upstream.url, model="m"))
    profile = types_pb2.Profile(name="talker", spec=spec)
    request = profile_service_pb2.CreateProfileRequest(request_id=request_id(), profile=profile)
    await profiles.create(plant.parts, request, ACTOR)
    return await assembled(plant, members=[{"name": "solo", "profile": "talker"}])


async def heard(plant: Plant, row: model.TaskRow, first: asyncio.Event) -> tuple[str, model.TaskRow]:
    """What a follower hears of an answer, and how the task ended; `first` is set with the first words."""
    said, last = "", row
    async for update in plant.factory.tasks.updates(row):
        if isinstance(update, model.TaskRow):
            last = update
        else:
            said += update.delta
            first.set()
    return said, last


async def test_cancelled_elsewhere_the_models_call_ends_too(site: Site):
    async with upstream(Turn(events=[delta("and")] + [0.02, delta(" so on")] * 500)) as answering:
        one, two = await site.plant("f1"), await site.plant("f2")
        row = await task(one, (await talker(one, answering)).id, 60, text="talk")
        begun = asyncio.Event()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            following = group.create_task(heard(one, row, begun))
            await begun.wait()
            await two.factory.tasks.cancel(row, ACTOR)
            async with asyncio.timeout(AT_ONCE_S):
                await answering.gone.wait()
        said, last = following.result()
    assert said.startswith("and")
    assert last.phase == "FAILED"


async def test_whoever_comes_late_hears_the_whole_answer(site: Site):
    words = [step for number in range(20) for step in (delta(f"{number} ä. "), 0.01)]
    async with upstream(Turn(events=[*words, *end()])) as answering:
        plant = await site.plant()
        row = await task(plant, (await talker(plant, answering)).id, 60, text="count")
        begun = asyncio.Event()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            early = group.create_task(heard(plant, row, begun))
            await begun.wait()
            late = group.create_task(heard(plant, row, asyncio.Event()))
    whole = "".join(f"{number} ä. " for number in range(20))
    assert (early.result()[0], late.result()[0]) == (whole, whole)
    result = agent_service_pb2.TaskResult.FromString(late.result()[1].result)
    assert (result.output["text"], result.finish_reason, result.usage.input_tokens) == (whole, "stop", 7)


async def test_a_ring_that_is_lost_costs_a_renewal(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "RENEW_S", 0.2)
    one, two = await site.plant("f1"), await site.plant("f2")
    runtime, row = await reviewing(one, site)

    async def silent(_topic: str) -> None:
        raise Unavailable("the bus is away")

    monkeypatch.setattr(two.bus, "ring", silent)
    assert (await two.factory.tasks.cancel(row, ACTOR)).phase == "FAILED"
    await until(lambda: len(runtime.agent().tasks) == 0, what="its work has ended")
