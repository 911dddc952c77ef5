"""Wiring is level-triggered: many calls, few applications, and what is applied last is what the rows say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest
from service_parts import agent, parts

from factory_server.core.errors import NotFound, Unavailable
from factory_server.core.lifecycle import AgentState
from factory_server.services.wiring import Wiring


class Driver:
    """Remembers what it was told; waits, fails or forgets as the test wishes."""

    def __init__(self) -> None:
        self.links: dict[str, Mapping[str, str]] = {}
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: dict[str, Exception] = {}

    async def wire(self, instance: str, links: Mapping[str, str]) -> None:
        self.calls += 1
        await self.gate.wait()
        if instance in self.errors:
            raise self.errors[instance]
        self.links[instance] = dict(links)


class Bus:
    socket_path = "/bus"


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def wiring(driver: Driver) -> Wiring:
    return Wiring(parts(driver=driver, bus=Bus()))


A, B = agent("a"), agent("b")


async def test_each_sees_its_mates_and_the_bus_and_not_itself(driver, wiring):
    await wiring.rewire([A, B])
    assert driver.links == {
        "a-a-g1": {"b.sock": "/svc/b-1", "bus.sock": "/bus"},
        "a-b-g1": {"a.sock": "/svc/a-1", "bus.sock": "/bus"},
    }


async def test_nothing_is_done_twice(driver, wiring):
    for _ in range(5):
        await wiring.rewire([A, B])
    assert driver.calls == 2


async def test_calls_that_wait_join_one_application(driver, wiring):
    agents = [A]
    driver.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(wiring.rewire(agents))
        await asyncio.sleep(0)
        agents.append(B)
        for _ in range(10):
            group.create_task(wiring.rewire(agents))
        await asyncio.sleep(0)
        driver.gate.set()
    assert set(driver.links["a-a-g1"]) == {"b.sock", "bus.sock"}
    assert driver.calls == 3, "one for a alone, then a and b again"


async def test_an_old_generations_socket_is_taken_from_its_mates(driver, wiring):
    wiring.publish(B, "unix:///svc/b-1")
    await wiring.rewire([A, B])
    successor = agent("b", AgentState.PROVISIONING, 2, instance=None)
    await wiring.rewire([A, successor])
    assert driver.links["a-a-g1"] == {"bus.sock": "/bus"}
    successor = agent("b", AgentState.WARMING, 2)
    wiring.publish(successor, "unix:///svc/b-2")
    await wiring.rewire([A, successor])
    assert driver.links["a-a-g1"]["b.sock"] == "/svc/b-2", "as soon as it is published, before it is READY"


@pytest.mark.parametrize("state", [AgentState.DRAINING, AgentState.UNHEALTHY, AgentState.FAILED])
async def test_who_does_not_serve_is_not_shown(driver, wiring, state):
    await wiring.rewire([A, B])
    await wiring.rewire([A, replace(B, state=state)])
    assert driver.links["a-a-g1"] == {"bus.sock": "/bus"}


async def test_what_failed_is_tried_again(driver, wiring):
    driver.errors["a-a-g1"] = Unavailable("no answer")
    await wiring.rewire([A, B])
    del driver.errors["a-a-g1"]
    await wiring.rewire([A, B])
    assert driver.links.keys() == {"a-a-g1", "a-b-g1"}
    assert driver.calls == 3, "only the one that failed"


async def test_one_that_is_gone_holds_up_nobody(driver, wiring):
    driver.errors["a-a-g1"] = NotFound("gone")
    await wiring.rewire([A, B])
    assert driver.links.keys() == {"a-b-g1"}


async def test_a_new_bus_socket_renews_every_link(driver, wiring):
    await wiring.rewire([A, B])
    wiring.renew()
    await wiring.rewire([A, B])
    assert driver.calls == 4


async def test_a_bus_that_restarts_while_links_are_made_renews_these_too(driver, wiring):
    """They may lead to the old socket: what was begun before the renewal counts as not done."""
    driver.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(wiring.rewire([A, B]))
        await asyncio.sleep(0)
        wiring.renew()
        driver.gate.set()
    await wiring.rewire([A, B])
    assert driver.calls == 4


async def test_a_fresh_instance_gets_the_bus_once(driver, wiring):
    await wiring.introduce(A)
    await wiring.introduce(A)
    assert driver.links == {"a-a-g1": {"bus.sock": "/bus"}}
    assert driver.calls == 1


async def test_nothing_is_kept_of_agents_that_are_gone(driver, wiring):
    wiring.publish(B, "unix:///svc/b-1")
    await wiring.rewire([A, B])
    await wiring.rewire([A])
    assert wiring._published == {}
    assert wiring._applied.keys() == {"a-a-g1"}
