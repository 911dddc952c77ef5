"""The one loop that touches the driver: it keeps crews, hears exits, reaps, refills and sweeps."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from factory_server.core import model
from factory_server.core.errors import FactoryError
from factory_server.core.lifecycle import AgentEvent
from factory_server.core.sandbox import Exit
from factory_server.services.context import ContextMirror
from factory_server.services.freezing import Freezing
from factory_server.services.hibernation import Hibernation
from factory_server.services.hub import NETWORKS, POOL, REAPER
from factory_server.services.keeper import LOST_FROM, Keeper
from factory_server.services.networks import NetworkLane
from factory_server.services.owned import spawn
from factory_server.services.parts import Parts
from factory_server.services.pool import PoolLane
from factory_server.services.sessions import Session, Sessions
from factory_server.services.skills import Mounts
from factory_server.services.steps import narrate
from factory_server.services.sweeper import Sweeper
from factory_server.services.teardown import destroy_instance

log = logging.getLogger("factory.reconciler")

LEASE_S = 6.0
"""A dead replica's crews are taken up after so long."""
LEASE_ATTEMPTS = 3
LEASE_AGAIN_S = 0.05
SCAN_S = 2.0
EXITS_AGAIN_S = 0.5
FIRST_LOOK_S = 5.0
CREWS_MAX = 2000
SWEEP_S = 5.0
REAP_S = 2.0
REAP_BATCH = 32
BUS_WATCH_S = 0.25
COMPACT_S = 600.0
EVENTS_KEEP_S = 7 * 24 * 3600.0
EVENTS_KEEP_PER_CREW = 100_000


class Reconciler:
    """All lanes of this process. Create, then `run` as a task of the owner's."""

    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        self._parts = parts
        self._sessions = sessions
        self._keepers: dict[str, Keeper] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._held_at: dict[str, float] = {}
        self._incarnation = ""
        self._group: asyncio.TaskGroup | None = None
        self._pool = PoolLane(parts, sessions.lines, self.busy)
        self._networks = NetworkLane(parts, self.busy)
        self.hibernation = Hibernation(parts, sessions)
        self.freezing = Freezing(parts, sessions, self.hibernation)
        self.mounts = Mounts(parts, sessions)
        self._sweeper = Sweeper(parts, sessions, self.lost_instance)
        self.settle: Callable[[str], Awaitable[None]] | None = None
        self.ready = asyncio.Event()
        sessions.on_attached.append(self._greet)

    # What use cases tell it

    def adopt(self, crew: model.CrewRow) -> None:
        """A crew that this process holds the lease of; begin at once with these rows."""
        self._keep(crew.id).begin_with(crew)
        self._parts.hub.ring(POOL)
        self._parts.hub.ring(NETWORKS)

    def kick(self, crew: str) -> None:
        """Something about this crew changed."""
        keeper = self._keepers.get(crew)
        if keeper is not None:
            keeper.kick()

    def nudge(self, crew: str) -> None:
        """A commit of this process changed agents of the crew; its keeper may know already."""
        keeper = self._keepers.get(crew)
        if keeper is not None:
            keeper.nudge()

    def assembling(self, crew: str) -> bool:
        """Whether the crew is kept here and not READY yet, as far as its keeper has seen."""
        keeper = self._keepers.get(crew)
        return keeper is not None and keeper.assembling

    def assembled(self, crew: str) -> model.CrewRow | None:
        """The crew as it was committed READY here just now; None where the store has to be asked."""
        keeper = self._keepers.get(crew)
        return None if keeper is None else keeper.known.ready

    def keeper(self, crew: str) -> Keeper | None:
        """Who keeps the crew here."""
        return self._keepers.get(crew)

    def busy(self) -> bool:
        """Whether agents are on their way to READY, so that refilling should wait."""
        return any(k.known.working() for k in self._keepers.values())

    # The lanes

    async def run(self) -> None:
        """Run all lanes until cancelled; instances live on."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._sessions.own(group)
                exits = group.create_task(self._hear_exits(group), name="exits")
                await self._adopt_first()
                self.ready.set()
                mirror = ContextMirror(self._parts, lambda: list(self._keepers))
                group.create_task(mirror.run(), name="context mirror")
                for name, lane in self._lanes().items():
                    group.create_task(lane, name=name)
                await exits
        finally:
            self._group = None

    def _lanes(self) -> dict[str, Coroutine[None, None, None]]:
        return {
            "scan": self._every(SCAN_S, "scan", self._scan),
            "reaper": self._on_ring(REAPER, REAP_S, "reaper", self._reap),
            "networks": self._on_ring(NETWORKS, REAP_S, "networks", self._networks.tend),
            "pool": self._on_ring(POOL, REAP_S, "pool", self._pool.fill),
            "sweep": self._every(SWEEP_S, "sweep", self._sweeper.sweep),
            "bus": self._every(BUS_WATCH_S, "bus", self._watch_bus),
            "compact": self._every(COMPACT_S, "compact", self._compact),
        }

    async def _every(self, pause_s: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._survive(name, work)
            await asyncio.sleep(pause_s)

    async def _on_ring(self, key: str, net_s: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        with self._parts.hub.subscribe(key) as rings:
            while True:
                await self._survive(name, work)
                await rings.wait(net_s)

    async def _survive(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A part that does not answer must not end the lane: it is told, counted, and tried again."""
        try:
            await work()
        except FactoryError as error:
            self._parts.measures.trouble.labels(name).inc()
            log.warning(
                "lane is in trouble", extra={"action": "lane_trouble", "lane": name, "error": str(error)}
            )

    async def _adopt_first(self) -> None:
        """Before anything is served: take up crews and compare with what really runs."""
        await self._survive("scan", self._scan)
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                for keeper in list(self._keepers.values()):
                    await keeper.seen.wait()
        except TimeoutError:
            log.warning("not every crew could be looked at yet")
        await self._survive("sweep", self._sweeper.sweep)

    async def _scan(self) -> None:
        """Prolong our leases and take free ones; leave crews whose lease is somebody else's by now."""
        kept = set(self._keepers)
        asked = time.monotonic()
        for _ in range(LEASE_ATTEMPTS):
            # A crew that is being written is skipped: that says nothing about whose it is.
            for crew in await self._lease():
                self._keep(crew)
                self._held_at[crew] = asked
                kept.discard(crew)
            if not kept:
                return
            await asyncio.sleep(LEASE_AGAIN_S)
        for crew in kept:
            if asked - self._held_at.get(crew, asked) > LEASE_S:
                self._leave(crew)

    async def _lease(self) -> Sequence[str]:
        return await self._parts.store.lease_crews(self._parts.owner, lease_s=LEASE_S, limit=CREWS_MAX)

    def _keep(self, crew: str) -> Keeper:
        keeper = self._keepers.get(crew)
        if keeper is None and self._group is not None:
            keeper = Keeper(crew, self._parts, self._sessions, self.mounts, self._incarnation)
            keeper.settle = self.settle
            self._keepers[crew] = keeper
            self._held_at[crew] = time.monotonic()
            self._keeping[crew] = spawn(self._group, self._run_keeper(keeper), f"keeper {crew}")
        if keeper is None:
            raise RuntimeError("the reconciler does not run")
        return keeper

    def _leave(self, crew: str) -> None:
        """Another process keeps the crew: two keepers would take its agents' sessions from each other."""
        log.warning("lease lost", extra={"action": "lease_lost", "crew": crew})
        keeping = self._keeping.get(crew)
        if keeping is not None:
            keeping.cancel()
        self._sessions.detach_crew(crew)

    async def _run_keeper(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        finally:
            for kept in (self._keepers, self._keeping, self._held_at):
                kept.pop(keeper.crew_id, None)

    async def _greet(self, session: Session) -> None:
        keeper = self._keepers.get(session.crew)
        if keeper is not None:
            await keeper.greet(session)

    async def _hear_exits(self, group: asyncio.TaskGroup) -> None:
        """One agent's end must not wait for another's: each is a task."""
        while True:
            try:
                async for ended in self._parts.driver.exits():
                    work = functools.partial(self._ended, ended)
                    spawn(group, self._survive("exits", work), f"exit {ended.instance}")
            except FactoryError as error:
                self._parts.measures.trouble.labels("exits").inc()
                log.warning("cannot hear exits", extra={"error": str(error)})
            else:
                return
            await asyncio.sleep(EXITS_AGAIN_S)
            await self._survive("sweep", self._sweeper.sweep)

    async def _ended(self, ended: Exit) -> None:
        reason = "OutOfMemory" if ended.oom else "InstanceExited"
        how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.code}"
        await self.lost_instance(ended.instance, reason, f"its instance ended by {how}")

    async def lost_instance(self, instance: str, reason: str, message: str) -> None:
        """An instance is dead: its agent gets a successor, or the pool another one."""
        for keeper in list(self._keepers.values()):
            agent = keeper.known.agent_of(instance)
            if agent is not None:
                log.info(
                    "instance lost",
                    extra={
                        "action": "instance_lost",
                        "agent": agent.id,
                        "instance": instance,
                        "reason": reason,
                    },
                )
                await keeper.lost(agent, reason, message)
                return
        if await self._is_of_the_pool(instance):
            await self._parts.store.release_instance(instance)
            self._parts.hub.ring(REAPER)
            self._parts.hub.ring(POOL)

    async def condemn(self, agent: model.AgentRow, reason: str, message: str, actor: str) -> None:
        """An agent is lost, whoever keeps its crew: its keeper here, or by the store and a doorbell."""
        keeper = self._keepers.get(agent.crew)
        if keeper is not None:
            await keeper.lost(agent, reason, message, actor)
            return
        failed = model.Step(
            agent.id, agent.generation, LOST_FROM, AgentEvent.HEALTH_FAILED, actor, reason, message
        )
        narrate(self._parts, await self._parts.store.step(agent.crew, [failed]))

    async def _is_of_the_pool(self, instance: str) -> bool:
        """An agent's instance, also one that is being made, is its own keeper's business."""
        rows = await self._parts.store.list_instances()
        return any(
            r.id == instance and not r.agent and r.state is not model.InstanceState.DYING for r in rows
        )

    async def _reap(self) -> None:
        """Destroy what is DYING; what resists is tried again, and delays nobody else."""
        rows = await self._parts.store.dying_instances(REAP_BATCH)
        failures: list[FactoryError] = []
        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(self._reap_one(row.id, failures), name=f"reap {row.id}")
        if rows:
            self._parts.hub.ring(POOL)
        if failures:
            raise failures[0]
        if len(rows) == REAP_BATCH:
            self._parts.hub.ring(REAPER)

    async def _reap_one(self, instance: str, failures: list[FactoryError]) -> None:
        try:
            await destroy_instance(self._parts, instance)
        except FactoryError as error:
            failures.append(error)

    async def _watch_bus(self) -> None:
        self._incarnation = await self._parts.bus.incarnation()
        for keeper in list(self._keepers.values()):
            await keeper.bus_seen(self._incarnation)

    async def _compact(self) -> None:
        await self._parts.store.compact_events(keep_s=EVENTS_KEEP_S, keep_per_crew=EVENTS_KEEP_PER_CREW)
