"""A cell on a real engine: a crew is told who it is, and the engine is asked for nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import pytest
from support.asking import assembled, disbanded
from support.site import Plant, Site, until

from factory_server.core import model
from factory_server.core.lifecycle import AgentState
from factory_server.core.model import InstanceState
from factory_server.core.networks import NetworkState, names_of
from factory_server.drivers.docker import bridges, hardening
from factory_server.drivers.docker.driver import DockerDriver

log = logging.getLogger("tests.cells")
pytestmark = pytest.mark.timeout(180)

BRIDGE = {"network": {"mode": "NETWORK_MODE_BRIDGE"}}
SIZE = int(os.environ.get("HYPERFACTORY_CELL_MEMBERS", "3"))
ROUNDS = int(os.environ.get("HYPERFACTORY_CELL_ROUNDS", "1"))
WITHIN_S = 60.0
LISTS = ("/containers/json", "/networks")
"""What the sweeper asks every few seconds, whatever else happens."""


@pytest.fixture
async def driver(plain_engine: str) -> AsyncIterator[DockerDriver]:
    """Of a factory of its own, which leaves nothing on the host."""
    state = Path(tempfile.mkdtemp(prefix="hfs", dir="/tmp"))
    made = DockerDriver(state, factory=state.name, engine=plain_engine)
    yield made
    last = DockerDriver(state, factory=state.name, engine=plain_engine)
    await last.start()
    await last.terminate()
    shutil.rmtree(state)


@pytest.fixture
def moby(plain_engine: str) -> Any:
    """The engine, asked directly."""
    return docker.APIClient(base_url=plain_engine, version="auto", timeout=30)


def of_factory(moby: Any, driver: DockerDriver) -> tuple[set[str], int, list[str]]:
    """Containers, how many networks, and bridges of this factory that there are."""
    labels = {"label": f"{hardening.LABEL_FACTORY}={driver._host.factory}"}
    containers = {c["Labels"][hardening.LABEL_INSTANCE] for c in moby.containers(all=True, filters=labels)}
    mark = bridges.bridges_of(driver._host.factory)
    links = [name for name in os.listdir("/sys/class/net") if name.startswith(mark)]  # noqa: PTH208
    return containers, len(moby.networks(filters=labels)), links


async def cell(plant: Plant) -> None:
    """One waits, and so do two plain networks where a crew has had one."""

    async def waiting() -> bool:
        rows = await plant.store.list_networks()
        instances = await plant.store.list_instances()
        settled = all(i.state in (InstanceState.WARM, InstanceState.OWNED) for i in instances)
        ready = [row for row in rows if row.state is NetworkState.READY and row.members]
        return settled and len(ready) == 1 and NetworkState.DYING not in {row.state for row in rows}

    await until(waiting, what="a cell waits", within_s=WITHIN_S)


FIND = """
import socket, sys
for name in sys.argv[1:]:
    try: print(socket.gethostbyname(name))
    except OSError: print()
"""


def find(moby: Any, container: str, names: list[str]) -> list[str]:
    """The addresses that a member finds behind names; '' for none."""
    made = moby.exec_create(container, ["python", "-c", FIND, *names])
    said: str = moby.exec_start(made).decode()
    return said.splitlines()


async def resolved(moby: Any, crew: model.CrewRow, other: model.CrewRow | None = None) -> None:
    """Every member finds every member by both names, and one who is asked finds nobody of another crew."""
    alive = [(a.name, a.instance) for a in crew.agents if a.instance]
    wished = {full: i.address for name, i in alive for full in names_of(name, crew.id)}
    for _, instance in alive:
        found = await asyncio.to_thread(find, moby, instance.container_id, list(wished))
        assert found == list(wished.values())
    if other is not None:
        stranger = names_of(other.agents[0].name, other.id)[1]
        assert await asyncio.to_thread(find, moby, alive[0][1].container_id, [stranger]) == [""]


async def test_a_crew_is_told_who_it_is_without_a_call_to_the_engine(
    driver: DockerDriver, site: Site, moby: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[datetime, str, str]] = []
    send = docker.APIClient.send

    def noted(self: Any, request: Any, **more: Any) -> Any:
        calls.append((datetime.now(UTC), request.method, request.path_url.partition("?")[0]))
        return send(self, request, **more)

    await driver.start()
    plant = await site.plant(cells=(1, SIZE), wrap=lambda name, port: driver if name == "driver" else port)
    await cell(plant)
    monkeypatch.setattr(docker.APIClient, "send", noted)
    spent: list[float] = []
    for _ in range(ROUNDS):
        calls.clear()
        began = datetime.now(UTC)
        crew = await assembled(plant, agents=SIZE, **BRIDGE)
        assert crew.ready_at is not None
        ended = crew.ready_at
        spent.append((ended - began).total_seconds() * 1e3)
        asked = [f"{verb} {path}" for at, verb, path in calls if at < ended and not path.endswith(LISTS)]
        assert asked == []
        await resolved(moby, crew)
        if len(spent) < ROUNDS:
            await disbanded(plant, crew.id)
            await cell(plant)
    log.info("%d members of a cell, ms until READY: %s", SIZE, [round(ms) for ms in sorted(spent)])
    await cell(plant)
    other = await assembled(plant, agents=SIZE + 1, **BRIDGE)
    await resolved(moby, other, crew)
    await heal_and_leave(plant, moby, crew, other)
    containers, networks, links = await asyncio.to_thread(of_factory, moby, driver)
    assert containers == {row.id for row in await plant.store.list_instances()}
    assert networks == len(links) == len(await plant.store.list_networks())
    assert len(containers) == SIZE, "of the cell that waits"


async def heal_and_leave(plant: Plant, moby: Any, crew: model.CrewRow, other: model.CrewRow) -> None:
    """A member dies and its successor has its name; then both crews go, and a cell waits."""
    dead = crew.agents[0]
    assert dead.instance is not None
    os.kill(dead.instance.host_pid, 9)

    async def healed() -> model.CrewRow | None:
        row = await plant.store.get_crew(crew.id)
        mine = row.agents[0]
        return row if (mine.state, mine.generation) == (AgentState.READY, 2) else None

    await resolved(moby, await until(healed, what="a successor", within_s=WITHIN_S), other)
    for row in (crew, other):
        await disbanded(plant, row.id)
    await cell(plant)
