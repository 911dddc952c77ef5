"""Accept raw TLS connections, read whom they name, and lead each to the socket of the live instance."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from gateway.destination import Answer, Destination, Park, ToAgent, ToGroup, destination, gave_up
from gateway.opening import Opening
from gateway.pipe import Held, Pipe, Traffic
from gateway.registry import Registry, Route
from hyperfactory.v1 import types_pb2
from wire.errors import FactoryError, NotFound

PARK_S: Final = 10.0
CONNECT_WITHIN_S: Final = 2.0
LOOK_AGAIN_S: Final = 0.1
"""A socket that did not answer is tried again so soon, if no news comes earlier."""
SETTLE_S: Final = 0.2
"""An unknown name is answered with NOT_FOUND when there was no news of it for so long."""
SWEEP_EVERY_S: Final = 30.0
IDLE_SWEEPS_MAX: Final = 20
"""Ten minutes without a byte; a live gRPC connection pings every 30 s."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the relay holds at most, and how long."""

    connections: int = 8192
    parked: int = 512
    park_s: float = PARK_S


class Answerer(Protocol):
    """Takes a connection over and ends its calls with an error; False where it may not speak for the name."""

    async def answer(self, client: Opening, authority: str, error: FactoryError) -> bool: ...


@dataclass(slots=True)
class _Waited:
    """Why a connection waits, kept where a deadline does not lose it."""

    why: str = ""


@dataclass(slots=True)
class Gauges:
    """What the relay is busy with."""

    traffic: Traffic
    opening: int = 0
    parked: int = 0
    park_timeouts: int = 0


class Relay:
    """Leads connections by the registry, and cuts those to an instance that is no longer the live one."""

    def __init__(
        self,
        registry: Registry,
        *,
        answerer: Answerer,
        groups_at: Callable[[], tuple[str, int]],
        group_routed: Callable[[str], bool],
        wake: Callable[[Route], Awaitable[bool]],
        limits: Limits,
        traffic: Traffic,
    ) -> None:
        self._registry = registry
        self._answerer = answerer
        self._groups_at = groups_at
        self._group_routed = group_routed
        self._wake = wake
        self._limits = limits
        self._tasks: asyncio.TaskGroup
        self._pipes: dict[str, dict[Pipe, int]] = defaultdict(dict)
        self._waking: set[str] = set()
        self.gauges = Gauges(traffic)
        registry.observers.append(self._fence)

    async def run(self) -> None:
        """Own every connection's task until cancelled; `serve` may be called once this runs."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    await asyncio.sleep(SWEEP_EVERY_S)
                    self._sweep()
        finally:
            for pipes in tuple(self._pipes.values()):
                for pipe in tuple(pipes):
                    pipe.cut()

    # -- accepting ---------------------------------------------------------------------------------------

    def accept(self, *, parking: bool) -> asyncio.Protocol:
        """The protocol of a new connection. Members of a group are not waited for: another can answer."""
        self.gauges.opening += 1

        def named(opening: Opening, name: str) -> asyncio.Task[None]:
            return self._tasks.create_task(
                self._lead_safely(opening, name, parking=parking), name=f"lead {name}"
            )

        return Opening(self._admit, named, self._over)

    def _admit(self) -> bool:
        if self.gauges.traffic.connections + self.gauges.opening <= self._limits.connections:
            return True
        self.gauges.traffic.refused += 1
        return False

    def _over(self) -> None:
        self.gauges.opening -= 1

    async def _lead_safely(self, client: Opening, name: str, *, parking: bool) -> None:
        try:
            led = await self._lead(client, name, parking=parking)
        except Exception:
            log.exception("cannot lead a connection", action="relay.failed", authority=name)
            led = False
        if not led:
            client.transport.abort()

    # -- leading -----------------------------------------------------------------------------------------

    async def _lead(self, client: Opening, name: str, *, parking: bool) -> bool:
        waited = _Waited()
        try:
            async with asyncio.timeout(self._limits.park_s if parking else CONNECT_WITHIN_S):
                with self._registry.watch(name) as bell:
                    return await self._lead_or_park(client, name, bell, waited, parking=parking)
        except TimeoutError:
            if client.handed_over:
                return True
            self.gauges.park_timeouts += 1
        return await self._answerer.answer(client, name, gave_up(name, waited.why))

    async def _lead_or_park(
        self, client: Opening, name: str, bell: asyncio.Event, waited: _Waited, *, parking: bool
    ) -> bool:
        settled = False
        while True:
            bell.clear()
            tried = await self._try(client, name, settled=settled)
            if isinstance(tried, bool):
                return tried
            if not parking or self.gauges.parked >= self._limits.parked:
                return False
            waited.why = tried.why
            settled = not await self._park(tried, bell)

    async def _try(self, client: Opening, name: str, *, settled: bool) -> bool | Park:
        """Lead the connection as things stand: True where it is led, False where it cannot be."""
        where = self._look(name)
        match where:
            case Park():
                return where
            case Answer(error=NotFound()) if not settled:
                # Who assembled a crew a moment ago may be here before the registry's news are.
                return Park("no such agent", within_s=SETTLE_S)
            case Answer(error=error):
                if await self._answerer.answer(client, name, error):
                    return True
                absent = isinstance(error, NotFound)
                return Park("the factory knows it and the gateway does not yet") if absent else False
            case ToAgent() | ToGroup():
                led = await self._connect(client, where)
                return led or Park("its socket does not answer", within_s=LOOK_AGAIN_S)

    def reachable(self, name: str) -> bool:
        """Whether a connection to this name would be led somewhere now."""
        return isinstance(self._look(name), ToAgent | ToGroup)

    def _look(self, name: str) -> Destination:
        registry = self._registry
        return destination(
            name,
            registry.find(name),
            group=bool(registry.members(name)),
            routed=self._group_routed(name),
            current=registry.current,
        )

    async def _park(self, park: Park, bell: asyncio.Event) -> bool:
        """Wait for news of the name; False where none came in the time that the park allows."""
        if park.wake is not None:
            self._wake_once(park.wake)
        self.gauges.parked += 1
        try:
            async with asyncio.timeout(park.within_s):
                await bell.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self.gauges.parked -= 1

    def _wake_once(self, route: Route) -> None:
        if route.agent in self._waking:
            return
        self._waking.add(route.agent)

        async def wake() -> None:
            if not await self._wake(route):
                self._waking.discard(route.agent)  # the next call may ask again

        self._tasks.create_task(wake(), name=f"wake {route.authority}")

    async def _connect(self, client: Opening, where: ToAgent | ToGroup) -> bool:
        """Connect and join; False where nobody answers or the instance was replaced meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                if isinstance(where, ToAgent):
                    _, server = await loop.create_unix_connection(Held, where.route.socket)
                else:
                    _, server = await loop.create_connection(Held, *self._groups_at())
        except (OSError, TimeoutError):
            return False
        if not self._still_right(where):
            server.transport.abort()
            return False
        self._join(client, server, where)
        return True

    def _still_right(self, where: ToAgent | ToGroup) -> bool:
        if isinstance(where, ToGroup):
            return bool(self._registry.members(where.group))
        now = self._registry.find(where.route.authority)
        same = now is not None and now.agent == where.route.agent
        return now is not None and same and _may_go_on(now, where.route.generation)

    def _join(self, client: Opening, server: Held, where: ToAgent | ToGroup) -> None:
        first = client.hand_over()
        self.gauges.traffic.connections += 1
        key = where.route.agent if isinstance(where, ToAgent) else where.group
        pipes = self._pipes[key]

        def over(pipe: Pipe) -> None:
            self.gauges.traffic.connections -= 1
            pipes.pop(pipe, None)
            if not pipes:
                self._pipes.pop(key, None)

        pipe = Pipe.join(client.transport, server, first, self.gauges.traffic, over)
        pipes[pipe] = where.route.generation if isinstance(where, ToAgent) else 0

    # -- ending ------------------------------------------------------------------------------------------

    def _fence(self, route: Route, gone: bool) -> None:
        """Cut what leads to an instance that is not the live one; one that drains may finish its calls."""
        self._waking.discard(route.agent)
        for pipe, generation in tuple(self._pipes.get(route.agent, {}).items()):
            if gone or not _may_go_on(route, generation):
                pipe.cut()
        if gone and route.group and not self._registry.members(route.group):
            for pipe in tuple(self._pipes.get(route.group, ())):
                pipe.cut()

    def _sweep(self) -> None:
        for pipes in tuple(self._pipes.values()):
            for pipe in tuple(pipes):
                if pipe.idle_sweeps() > IDLE_SWEEPS_MAX:
                    pipe.cut()


def _may_go_on(route: Route, generation: int) -> bool:
    if route.generation != generation:
        return False
    return route.serving or route.state == types_pb2.AGENT_STATE_DRAINING
