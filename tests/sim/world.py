"""A crew's whole life under weather and crashes, and what must hold during and after it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from support.asking import ACTOR, manifest
from support.site import Plant, Site, until
from support.weather import Weathered

from factory_server.core import model
from factory_server.core.errors import FactoryError, Refused, Unavailable
from factory_server.core.lifecycle import AgentEvent, AgentState, CrewState, advance
from factory_server.services import agents, assemble, disband, update
from hyperfactory.v1 import crew_service_pb2, events_pb2, factory_service_pb2, types_pb2

CONVERGED_WITHIN_S = 15.0
HANG_S = 0.2
ENDED = (CrewState.DISBANDED, CrewState.FAILED)
GENTLE = ("line.assume", "line.run_task")
"""What these refuse costs a replacement or a task, so it is rare."""
UNTOUCHED = ("store.", "bus.doorbells", "driver.exits")
ENDING = ("line.close", "bus.close", "driver.close", "store.close")
"""The store's own faults are tried where the store is; here it may be left at any call, though."""


@dataclass(eq=False)
class Weather:
    """What happens at ports, drawn from a seed; `crash_at` are the numbers of calls at which the factory dies."""

    seed: int
    severity: float = 1.0
    crash_at: frozenset[int] = frozenset()
    calls: int = 0
    stormy: bool = True
    crash: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def wrap(self, name: str, port: Any) -> Any:
        """For `Site.plant`."""
        return Weathered(name, port, self._before, self._after)

    async def _before(self, verb: str, arguments: tuple[Any, ...]) -> None:
        if verb.startswith(ENDING):
            return
        await self._maybe_crash()
        if not self.stormy or verb.startswith(UNTOUCHED):
            return
        drawn = self._dice.random() / self.severity
        if drawn < 0.15:
            await asyncio.sleep(self._dice.random() * 0.01)
        elif drawn < 0.19 and (verb not in GENTLE or drawn < 0.155):
            raise Unavailable(f"{verb} is refused by the weather")
        elif 0.19 <= drawn < 0.195:
            await asyncio.sleep(HANG_S)
            raise Unavailable(f"{verb} hung until its deadline")

    async def _after(self, verb: str, arguments: tuple[Any, ...]) -> None:
        if verb.startswith(ENDING):
            return
        await self._maybe_crash()
        if not self.stormy or verb.startswith(UNTOUCHED) or verb in GENTLE:
            return
        if self._dice.random() / self.severity < 0.04:
            raise Unavailable(f"{verb} failed after its effect")

    async def _maybe_crash(self) -> None:
        task = asyncio.current_task()
        if not self.stormy or (task is not None and task.cancelling()):
            return  # what tidies up after its own end cannot be the one that dies
        self.calls += 1
        if self.calls in self.crash_at:
            self.crash()
            await asyncio.Event().wait()  # whoever called died with the factory


@dataclass(eq=False)
class Life:
    """One crew, asked for by a client that repeats each request until it is answered."""

    site: Site
    weather: Weather
    pool: int = 2
    agents: int = 3
    bridged: bool = False
    plant: Plant | None = None
    crashes: int = 0
    crew: str = ""
    handled: Counter[tuple[str, str]] = field(default_factory=Counter)
    _number: int = 0
    _down: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.weather.crash = self._down.set

    async def start(self) -> Plant:
        """A factory, as a supervisor starts it; one that dies while it starts is started again."""
        while True:
            self._down.clear()
            starting = asyncio.ensure_future(  # noqa: TID251  # cancelled or awaited below
                self.site.plant(wrap=self.weather.wrap, pool=0 if self.crashes else self.pool)
            )
            if await self._done_before_crash(starting):
                try:
                    self.plant = starting.result()
                except FactoryError:
                    continue
                return self.plant

    async def ask(self, request: Callable[[Plant], Awaitable[Any]]) -> Any:
        """The answer, from whatever factory gives one."""
        while True:
            plant = self.plant or await self.start()
            asking = asyncio.ensure_future(request(plant))  # type: ignore[arg-type]  # noqa: TID251
            if not await self._done_before_crash(asking):
                continue
            try:
                return asking.result()
            except Unavailable:
                await asyncio.sleep(0.01)

    async def _done_before_crash(self, task: asyncio.Future[Any]) -> bool:
        down = asyncio.ensure_future(self._down.wait())  # noqa: TID251
        await asyncio.wait((task, down), return_when=asyncio.FIRST_COMPLETED)
        down.cancel()
        if not self._down.is_set():
            return True
        self.crashes += 1
        task.cancel()
        with suppress(asyncio.CancelledError, FactoryError):
            await task
        if self.plant is not None:
            await self.plant.crash()
            self.plant = None
        self._down.clear()
        return False

    def request_id(self) -> str:
        """A fresh one; the client keeps it over its repeats."""
        self._number += 1
        return f"00000000-0000-4000-8000-{self._number:012}"

    # What the client wants

    async def assemble(self) -> model.CrewRow:
        wish = manifest(agents=self.agents, context={"goal": 1})
        if self.bridged:
            wish.network.mode = crew_service_pb2.NETWORK_MODE_BRIDGE
        request = crew_service_pb2.AssembleCrewRequest(request_id=self.request_id(), manifest=wish)

        async def call(plant: Plant) -> model.CrewRow:
            made = await assemble.assemble(plant.parts, plant.reconciler, request, ACTOR)
            assert made.crew is not None
            return made.crew

        crew: model.CrewRow = await self.ask(call)
        self.crew = crew.id
        return crew

    async def broadcast(self) -> str:
        request = crew_service_pb2.BroadcastRequest(
            request_id=self.request_id(), crew=self.crew, signal="PING"
        )
        request.ttl.seconds = 5

        async def call(plant: Plant) -> str:
            row, _ = await plant.factory.broadcasts.send(request, ACTOR)
            return row.id

        return str(await self.ask(call))

    async def task(self) -> str:
        request = crew_service_pb2.RunTaskRequest(request_id=self.request_id(), crew=self.crew)
        request.timeout.seconds = 5

        async def call(plant: Plant) -> str:
            try:
                row, _ = await plant.factory.tasks.start(request, ACTOR)
            except Refused:
                raise Unavailable("nobody is READY yet") from None
            return row.id

        return str(await self.ask(call))

    async def update(self, agents: int) -> model.CrewRow:
        """The crew, of so many agents now."""
        request = crew_service_pb2.UpdateCrewRequest(
            request_id=self.request_id(),
            crew=self.crew,
            manifest=manifest(agents=agents, context={"goal": 1}),
        )

        async def call(plant: Plant) -> model.CrewRow:
            done = await update.update(plant.parts, plant.reconciler, request, ACTOR)
            assert done.crew is not None
            return done.crew

        crew: model.CrewRow = await self.ask(call)
        return crew

    async def stop(self, agent: str) -> None:
        request = factory_service_pb2.StopAgentRequest(request_id=self.request_id(), agent=agent)
        await self.ask(lambda plant: agents.stop(plant.parts, plant.reconciler, request, ACTOR))

    async def disband(self) -> model.CrewRow:
        request = crew_service_pb2.DisbandCrewRequest(request_id=self.request_id(), crew=self.crew)
        row: model.CrewRow = await self.ask(
            lambda plant: disband.disband(plant.parts, plant.reconciler, request, ACTOR)
        )
        return row

    async def kill_one(self) -> None:
        """One of the crew's instances dies."""
        row = await self.row()
        alive = [a.instance.id for a in row.agents if a.instance is not None and a.instance.control]
        if alive:
            self.site.host.kill(alive[0])

    async def row(self) -> model.CrewRow:
        """The crew."""
        found: model.CrewRow = await self.ask(lambda plant: plant.store.get_crew(self.crew))
        return found

    # What must hold

    async def clear_up(self) -> None:
        """The weather clears."""
        self.weather.stormy = False
        if self.plant is None:
            await self.start()

    async def check_safety(self) -> None:
        """One live instance an agent, legal steps only, events without a gap, one receipt a target."""
        assert self.plant is not None
        store = self.plant.store
        rows = await store.list_instances()
        alive = Counter(r.agent for r in rows if r.agent and r.state is not model.InstanceState.DYING)
        assert all(n == 1 for n in alive.values()), alive
        events = [e.decode() for e in await store.read_events(self.crew, 0, 10_000)]
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))
        check_steps(events)
        receipts = Counter(
            (e.receipt.broadcast, e.receipt.agent) for e in events if e.type == events_pb2.EVENT_TYPE_RECEIPT
        )
        assert all(n == 1 for n in receipts.values()), receipts

    async def converged(self) -> bool:
        """Everybody who is wished serves, and nothing exists that nobody owns."""
        assert self.plant is not None
        store, driver, bus = self.plant.store, self.plant.driver, self.plant.bus
        crew = await store.get_crew(self.crew)
        live = [a for a in crew.agents if a.state is not AgentState.STOPPED]
        rows = {r.id for r in await store.list_instances()}
        return (
            crew.state in (CrewState.READY, *ENDED)
            and all(a.state is AgentState.READY for a in live)
            and {s.instance for s in await driver.list()} == rows
            and {(a, g) for _, a, g in await bus.list_users()} == {(a.id, a.generation) for a in live}
            and (crew.state not in ENDED or await bus.list_crews() == [])
            and await store.open_tasks(self.crew) == []
            and all(not receipts for _, receipts in await store.pending_receipts(self.crew))
            and len(rows) == len(live) + self.pool
            and await self._connected(live)
        )

    async def _connected(self, live: Sequence[model.AgentRow]) -> bool:
        """Members are where their names lead to, and every network is somebody's or waits."""
        assert self.plant is not None
        rows = await self.plant.store.list_networks()
        there = self.site.host.networks
        owned = [row.id for row in rows if row.crew]
        known = {a.name: a.instance.address for a in live if a.instance is not None}
        return (
            {row.id for row in rows} == there.keys()
            and len(owned) == bool(live and self.bridged)
            and all(there[owned[0]].resolve(name) == where for name, where in known.items() if owned)
            and all(bool(where) == self.bridged for where in known.values())
        )

    async def why_not(self) -> str:
        """What has not converged, for the one who reads a failure."""
        assert self.plant is not None
        store = self.plant.store
        crew = await store.get_crew(self.crew)
        agents = [(a.name, a.state.value, a.generation, a.reason, a.message) for a in crew.agents]
        rows = [(r.id, r.state.value, r.agent) for r in await store.list_instances()]
        exist = [s.instance for s in await self.plant.driver.list()]
        return (
            f"seed {self.weather.seed} crash at {sorted(self.weather.crash_at)}: {crew.state.value} {agents}\n"
            f"rows {rows}\nexist {exist}\nusers {await self.plant.bus.list_users()} "
            f"keys {await self.plant.bus.list_crews()}\ntasks {await store.open_tasks(self.crew)}\n"
            f"receipts {await store.pending_receipts(self.crew)}\n"
            f"networks {await store.list_networks()} exist {self.site.host.networks}"
        )

    async def check_liveness(self) -> None:
        """Once the weather has cleared, everything comes right without help."""
        try:
            await until(self.converged, within_s=CONVERGED_WITHIN_S)
        except AssertionError:
            raise AssertionError(await self.why_not()) from None
        await self.check_safety()


def check_steps(events: list[events_pb2.Event]) -> None:
    """Each agent goes along the table, its generation by one at a time."""
    states: dict[str, AgentState | None] = {}
    generations: dict[str, int] = {}
    for event in events:
        if event.type != events_pb2.EVENT_TYPE_AGENT_STATE:
            continue
        step = event.agent_step
        target = AgentState(types_pb2.AgentState.Name(step.to).removeprefix("AGENT_STATE_"))
        assert advance(states.get(event.agent), AgentEvent(step.event)) is target, step
        assert step.generation - generations.get(event.agent, 0) in (0, 1), step
        states[event.agent] = target
        generations[event.agent] = step.generation
