"""Tasks of a factory, ended or watched by another one on the same store."""

from __future__ import annotations

import pytest
from support.asking import ACTOR, assembled, task
from support.site import RUNTIMES, Plant, Site, until

from agent_runtime.runtime import Runtime
from factory_server.core import model
from factory_server.core.errors import Unavailable
from factory_server.services import tasks
from hyperfactory.v1 import agent_service_pb2

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


async def test_a_ring_that_is_lost_costs_a_renewal(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "RENEW_S", 0.2)
    one, two = await site.plant("f1"), await site.plant("f2")
    runtime, row = await reviewing(one, site)

    async def silent(_topic: str) -> None:
        raise Unavailable("the bus is away")

    monkeypatch.setattr(two.bus, "ring", silent)
    assert (await two.factory.tasks.cancel(row, ACTOR)).phase == "FAILED"
    await until(lambda: len(runtime.agent().tasks) == 0, what="its work has ended")
