"""One machine with factories on it: fake sandboxes that hold real or model agents, a real store, a real bus.

A factory here is what `python -m factory_server` composes, without its gRPC server; it can be crashed at any
moment and followed by another one on the same machine.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry

from agent_runtime.paths import Paths
from agent_runtime.runtime import Runtime
from factory_server.__main__ import Factory, Identities, open_identities, open_shelf
from factory_server.bus import RedisBus, RedisVectorSets
from factory_server.config import Config
from factory_server.core.line import Line
from factory_server.drivers.fake import Agent, FakeDriver, FakeHost, FakeInstance
from factory_server.drivers.line import GrpcLine
from factory_server.identity.agents import AgentIdentities
from factory_server.services import profiles
from factory_server.services.measures import Measures
from factory_server.services.parts import Parts
from factory_server.store import PostgresStore

WITHIN_S = 20.0
CRASHED_WITHIN_S = 10.0
POLL_S = 0.01

Wrap = Callable[[str, Any], Any]
"""Puts something between the factory and a port; given the port's name and the port."""


RUNTIMES: WeakKeyDictionary[FakeInstance, Runtime] = WeakKeyDictionary()
"""Runtimes of real agents."""


async def real_agent(instance: FakeInstance) -> int:
    """The agent runtime, in this process."""
    runtime = Runtime(
        Paths(*map(Path, (instance.own_dir, instance.peers_dir, instance.workspace, instance.skills_dir)))
    )
    await runtime.start()
    RUNTIMES[instance] = runtime
    try:
        instance.ready()
        await asyncio.Event().wait()
    finally:
        await runtime.stop()
    return 0


async def until(
    condition: Callable[[], Any | Awaitable[Any]], *, what: str = "", within_s: float = WITHIN_S
) -> Any:
    """The condition's first true answer; fails with `what` after the deadline."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                found = condition()
                found = await found if asyncio.iscoroutine(found) else found
                if found:
                    return found
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what or condition}") from None


@dataclass(eq=False)
class Plant:
    """A factory that runs, and what it is made of."""

    factory: Factory
    parts: Parts
    store: PostgresStore
    driver: FakeDriver
    bus: RedisBus
    task: asyncio.Task[None] | None = None

    @property
    def reconciler(self) -> Any:
        """The factory's reconciler."""
        return self.factory.reconciler

    async def crash(self) -> None:
        """End every task of the factory wherever it waits, as a kill would; leases are not given back."""
        task, self.task = self.task, None
        if task is None:
            return
        task.cancel()
        _, pending = await asyncio.wait((task,), timeout=CRASHED_WITHIN_S)
        assert not pending, f"these do not end: {[t.get_name() for t in asyncio.all_tasks()]}"
        with suppress(asyncio.CancelledError):
            await task


@dataclass(eq=False)
class Site:
    """The machine, its database and its bus."""

    home: Path
    database_url: str
    bus_url: str
    stack: AsyncExitStack
    group: asyncio.TaskGroup
    who: Identities
    agent: Agent = real_agent
    open_line: Callable[[str], Line] = GrpcLine
    host: FakeHost = field(init=False)

    def __post_init__(self) -> None:
        self.host = FakeHost(agent=self.agent)

    def config(self) -> Config:
        """The settings of each factory here."""
        return Config(
            home=self.home,
            database_url=self.database_url,
            bus_url=self.bus_url,
            listen="",
            gateway="",
            metrics="",
            driver="fake",
            pool=0,
            terminate=False,
        )

    async def plant(
        self,
        owner: str = "f1",
        *,
        pool: int = 0,
        cells: tuple[int, int] = (0, 0),
        wrap: Wrap = lambda _, port: port,
    ) -> Plant:
        """Start a factory; it serves when this returns."""
        store = PostgresStore(self.database_url)
        await store.open()
        driver = FakeDriver(self.home / "s", host=self.host)
        await driver.start()
        bus = RedisBus(self.bus_url, secret=await store.secret("bus"))
        parts = Parts(
            wrap("store", store),
            wrap("bus", bus),
            wrap("driver", driver),
            AgentIdentities(self.who.ca, self.who.mint),
            lambda control: wrap("line", self.open_line(control)),
            owner,
            measures=Measures(CollectorRegistry()),
            skills=open_shelf(self.config()),
            cells=cells,
            vector_index=RedisVectorSets(self.bus_url),
        )
        plant = Plant(Factory(self.config(), parts, store, self.who), parts, store, driver, bus)
        await profiles.ensure_built_in(plant.parts)
        if pool:
            await store.set_pool("python", pool, None, "test")
        plant.task = self.group.create_task(self._run(plant), name=f"factory {owner}")
        ready = self.group.create_task(plant.reconciler.ready.wait(), name="ready")
        try:
            await asyncio.wait((ready, plant.task), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await plant.crash()
            raise
        finally:
            ready.cancel()
        return plant

    async def _run(self, plant: Plant) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                plant.factory.start(group)
        finally:
            await plant.bus.close()
            if plant.parts.vector_index is not None:
                await plant.parts.vector_index.close()
            await plant.driver.close()
            await plant.store.close()


@asynccontextmanager
async def open_site(database_url: str, bus_url: str, **options: Any) -> AsyncIterator[Site]:
    """A machine; at the end its factories are ended and everything on it is destroyed."""
    home = Path(tempfile.mkdtemp(prefix="hfs", dir="/tmp"))
    try:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            who = open_identities(Config(home, database_url, bus_url, "", "", "", "fake", 0, terminate=False))
            site = Site(home, database_url, bus_url, stack, group, who, **options)
            await site.host.boot()
            plants: list[Plant] = []
            start = site.plant

            async def keep(*arguments: Any, **more: Any) -> Plant:
                plants.append(await start(*arguments, **more))
                return plants[-1]

            site.plant = keep  # type: ignore[method-assign]
            try:
                yield site
            finally:
                for plant in plants:
                    await plant.crash()
                await FakeDriver(home / "s", host=site.host).terminate()
    finally:
        shutil.rmtree(home, ignore_errors=True)
