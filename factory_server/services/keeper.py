"""Keep one crew as its rows wish: look at every unsettled member, do what it needs, look again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace as with_fields
from datetime import datetime, timedelta

from factory_server.core import model, reconcile
from factory_server.core.errors import FactoryError
from factory_server.core.lifecycle import CREW_ENDED, AgentEvent, AgentState, CrewState
from factory_server.core.reconcile import Job
from factory_server.services import context, hibernation, provision, teardown
from factory_server.services.egress import WayOut
from factory_server.services.freezing import Freezing
from factory_server.services.hub import REAPER
from factory_server.services.known import KnownCrew
from factory_server.services.networks import CrewNetwork
from factory_server.services.owned import spawn
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.provision import Phases
from factory_server.services.sessions import Session, Sessions
from factory_server.services.skills import Mounts
from factory_server.services.steps import StepBatcher, replace_step, simple_step
from factory_server.services.wiring import WIRED, Wiring
from hyperfactory.v1 import agent_service_pb2

log = logging.getLogger("factory.keeper")

LOOK_AGAIN_S = 5.0
"""The safety net under the doorbells."""
TROUBLE_PAUSE_S = 0.2
LOST_FROM = (AgentState.WARMING, AgentState.READY, AgentState.BUSY)


class Keeper:
    """The one who works on one crew. `run` returns when the crew is gone for good."""

    def __init__(
        self, crew: str, parts: Parts, sessions: Sessions, mounts: Mounts, incarnation: str = ""
    ) -> None:
        self.crew_id = crew
        self.known = KnownCrew()
        self._parts = parts
        self._sessions = sessions
        self._mounts = mounts
        self._hibernation = hibernation.Hibernation(parts, sessions)
        self._freezing = Freezing(parts, sessions, self._hibernation)
        self._network = CrewNetwork(parts)
        self._wiring = Wiring(parts, self._network.share_names)
        self._way_out = WayOut(parts, self._wiring)
        self._batcher = StepBatcher(crew, parts, self.known.committed)
        self._wake = asyncio.Event()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._retry_at: dict[str, tuple[Job, datetime]] = {}
        self._attempts: dict[str, int] = {}
        self._taken_away: set[str] = set()
        self._assuming: set[str] = set()
        self._given: model.CrewRow | None = None
        self._recorded_now = False
        self._bus_incarnation = incarnation
        self._settle_at = 0.0
        self._prepared = False
        self.seen = asyncio.Event()
        self._roster: tuple[tuple[str, int, datetime | None], ...] = ()
        self.phases: dict[str, Phases] = {}
        self.settle: Callable[[str], Awaitable[None]] | None = None

    # What others tell it

    def kick(self) -> None:
        """Look now."""
        self._wake.set()

    def nudge(self) -> None:
        """Agents changed here. While each of them is being worked on, the end of that work is the time to look."""
        if self.known.state is not CrewState.ASSEMBLING or not self.known.agents.keys() <= self._jobs.keys():
            self.kick()

    def begin_with(self, crew: model.CrewRow) -> None:
        """Start from rows that were just recorded: there is no work, signal or context of theirs to settle yet."""
        if self.seen.is_set():
            self.kick()  # it has begun by itself, and may know newer rows
            return
        self._given = crew
        self._recorded_now = True
        self._settle_at = time.monotonic() + LOOK_AGAIN_S

    @property
    def assembling(self) -> bool:
        """Whether the crew is not READY yet, as far as is known here."""
        state = self.known.state if self._given is None else self._given.state
        return state is CrewState.ASSEMBLING

    async def bus_seen(self, incarnation: str) -> None:
        """The bus runs as this incarnation: where it is another one, renew what hung on the old."""
        if incarnation == self._bus_incarnation:
            return
        if self._bus_incarnation:
            log.info("bus restarted", extra={"action": "bus_restarted", "crew": self.crew_id})
            for agent in list(self.known.agents.values()):
                if agent.state in WIRED and self.known.agents.get(agent.id) is agent:
                    await self._parts.bus.grant(agent.crew, agent.id, agent.generation)
            self._prepared = False
        self._bus_incarnation = incarnation
        self._wiring.renew()
        self.kick()

    async def greet(self, session: Session) -> None:
        """A session stands (again): it may have missed a roster."""
        if self.known.crew is not None:
            await session.send(self._roster_item(self.known.crew))

    async def lost(self, agent: model.AgentRow, reason: str, message: str, actor: str = ACTOR) -> None:
        """The agent's instance is dead or condemned: say so and, where allowed, replace it at once."""
        present = self.known.agents.get(agent.id)
        if present is not None and present.state is AgentState.DRAINING:
            return  # it is being taken away
        failed = model.Step(
            agent.id, agent.generation, LOST_FROM, AgentEvent.HEALTH_FAILED, actor, reason, message
        )
        steps = [failed]
        if self.known.crew is not None:
            after = with_fields(
                agent, state=AgentState.UNHEALTHY, updated_at=self._parts.now(), message=message
            )
            verdict = reconcile.decide(after, self.known.crew, after.updated_at)
            if verdict.job is Job.REPLACE and (verdict.due is None or verdict.due <= after.updated_at):
                steps.append(replace_step(after))
        await self._batcher.step(steps)
        try:
            await self._fence(agent)
        finally:
            self.kick()

    # The loop

    async def run(self) -> None:
        """Keep the crew until it is gone."""
        async with asyncio.TaskGroup() as group:
            flusher = group.create_task(self._batcher.run(), name=f"steps {self.crew_id}")
            try:
                while True:
                    pause_s = await self._guarded_look(group)
                    if pause_s is None:
                        return
                    await self._pause(pause_s)
            finally:
                self._wiring.close()
                self._mounts.stop(self.crew_id)
                flusher.cancel()
                for job in self._jobs.values():
                    job.cancel()
                await self._way_out.close()

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _guarded_look(self, group: asyncio.TaskGroup) -> float | None:
        try:
            return await self._look(group)
        except FactoryError as error:
            self._parts.measures.trouble.labels("keeper").inc()
            log.warning("cannot look", extra={"crew": self.crew_id, "error": str(error)})
            return TROUBLE_PAUSE_S

    async def _look(self, group: asyncio.TaskGroup) -> float | None:
        """One level-triggered pass; how long to pause, or None when nothing is left to keep."""
        given, self._given = self._given, None
        self.known.begin_to_read()
        crew = self.known.see(given or await self._parts.store.get_crew(self.crew_id))
        self._forget_the_gone()
        self.seen.set()
        if crew.state in CREW_ENDED:
            return None
        if not self._prepared:
            await self._prepare_if_possible(crew)
        if await self._end_if_due(crew):
            return 0.0
        for agent in self._hibernation.left_behind(self.known.agents.values()):
            await self._fence(agent)
        await self._way_out.see_to(crew)
        if given is None:  # whoever is fresh is wired by its own job, beside the others
            await self._rewire()
        await self._share_roster(crew)  # who drops a channel by it finds the new socket
        self._mounts.start(group, self.known.agents.values())
        await self._settle_work()
        return self._start_jobs(group, crew)

    def _forget_the_gone(self) -> None:
        for kept in (self._retry_at, self._attempts, self.phases):
            for gone in kept.keys() - self.known.agents.keys():
                kept.pop(gone)

    async def _prepare_if_possible(self, crew: model.CrewRow) -> None:
        """Without the bus nobody is assumed; whoever leaves, leaves."""
        try:
            await self._prepare(crew)
        except FactoryError as error:
            self._parts.measures.trouble.labels("prepare").inc()
            log.warning("cannot prepare", extra={"crew": self.crew_id, "error": str(error)})

    async def _prepare(self, crew: model.CrewRow) -> None:
        """Put the manifest's context on the bus, and what the store mirrored of it."""
        recorded_now, self._recorded_now = self._recorded_now, False
        await context.restore(self._parts, crew, mirrored=not recorded_now)
        self._prepared = True

    async def _end_if_due(self, crew: model.CrewRow) -> bool:
        """Wish the crew gone where its ttl is over or its assembly has failed."""
        if crew.wish_gone:
            return False
        if reconcile.crew_expired(crew, self._parts.now()):
            await self._disband(failed=False, reason="Expired", message="the crew's ttl is over")
            return True
        if crew.state is CrewState.ASSEMBLING:
            for agent in crew.agents:
                if agent.state is AgentState.FAILED:
                    await self._disband(
                        failed=True, reason=agent.reason, message=f"{agent.name}: {agent.message}"
                    )
                    return True
        return False

    async def _disband(self, *, failed: bool, reason: str, message: str) -> None:
        await self._parts.store.disband(
            self.crew_id, None, ACTOR, failed=failed, reason=reason, message=message, drain_s=0.0
        )

    async def _settle_work(self) -> None:
        """Now and then, end what a process that died left open: its tasks, and signals that expired."""
        if self.settle is not None and time.monotonic() >= self._settle_at:
            self._settle_at = time.monotonic() + LOOK_AGAIN_S
            await self.settle(self.crew_id)

    async def _share_roster(self, crew: model.CrewRow) -> None:
        present = [a for a in crew.agents if a.state is not AgentState.STOPPED]
        roster = tuple((a.id, a.generation, a.frozen_at) for a in present)
        if roster == self._roster:
            return
        self._roster = roster
        for session in self._sessions.of_crew(crew.id):
            await session.send(self._roster_item(crew))

    def _roster_item(self, crew: model.CrewRow) -> agent_service_pb2.DeliverRequest:
        return agent_service_pb2.DeliverRequest(roster=provision.roster_of(crew.agents, crew.last_sequence))

    # Jobs

    def _start_jobs(self, group: asyncio.TaskGroup, crew: model.CrewRow) -> float:
        now = self._parts.now()
        expiry = None if crew.wish_gone else crew.expires_at
        soonest = min(filter(None, (now + timedelta(seconds=LOOK_AGAIN_S), expiry)))
        leaving: list[model.AgentRow] = []
        for agent in self.known.agents.values():
            if agent.id in self._jobs:
                if agent.state is AgentState.DRAINING and agent.id in self._assuming:
                    self._jobs[agent.id].cancel()  # its instance may hang for as long as it likes
                continue
            decision = reconcile.decide(agent, crew, now)
            if decision.job is Job.HIBERNATE:
                attended = self._attended(agent) or agent.frozen_at is not None
                decision = self._hibernation.resting.unless_used(agent, decision, attended=attended)
            decision = self._freezing.settled(agent, decision, attended=self._attended(agent))
            due = self._due(agent, decision, now)
            if decision.job is Job.NONE or (decision.job is Job.ATTEND and self._attended(agent)):
                soonest = min(filter(None, (soonest, agent.lease_until, reconcile.rests_at(agent, now))))
            elif due > now:
                soonest = min(soonest, due)
            elif decision.job is Job.DRAIN:
                leaving.append(agent)
            else:
                self._start(group, agent, decision.job, self._work(agent, crew, decision))
        if leaving:
            drain = self._guarded(leaving, Job.DRAIN, self._drain(leaving, crew))
            job = spawn(group, drain, "drain")
            self._jobs.update({a.id: job for a in leaving})
        return max((soonest - now).total_seconds(), 0.0)

    def _due(self, agent: model.AgentRow, decision: reconcile.Decision, now: datetime) -> datetime:
        """A job that failed waits a little; that delays no other job, least of all the agent's end."""
        job, again = self._retry_at.get(agent.id, (Job.NONE, now))
        if decision.job is Job.ASSUME and not self._prepared:
            again = now + timedelta(seconds=TROUBLE_PAUSE_S)
        elif decision.job is not job:
            again = now
        return max(again, decision.due or now)

    def _start(
        self,
        group: asyncio.TaskGroup,
        agent: model.AgentRow,
        job: Job,
        work: Coroutine[None, None, bool],
    ) -> None:
        name = f"{job.value} {agent.id}"
        self._jobs[agent.id] = spawn(group, self._guarded([agent], job, work), name)

    async def _guarded(
        self, agents: Sequence[model.AgentRow], job: Job, work: Coroutine[None, None, bool]
    ) -> None:
        """One agent's trouble must not end its siblings: it is told, and tried again after a pause."""
        moved = True
        try:
            moved = await work
        except FactoryError as error:
            self._parts.measures.trouble.labels("job").inc()
            log.warning("cannot carry on", extra={"agent": agents[0].id, "error": str(error)})
            later = self._parts.now() + timedelta(seconds=TROUBLE_PAUSE_S)
            self._retry_at.update({a.id: (job, later) for a in agents})
        finally:
            for agent in agents:
                self._jobs.pop(agent.id, None)
            if moved:  # or failed: while it worked, its agents were left out of every look
                self.kick()

    async def _work(self, agent: model.AgentRow, crew: model.CrewRow, decision: reconcile.Decision) -> bool:
        """Do one job; whether anything moved."""
        match decision.job:
            case Job.CREATE:
                return await self._create(agent)
            case Job.ASSUME:
                return await self._assume(agent)
            case Job.ATTEND:
                return await self._attend(agent)
            case Job.RELEASE:
                await self._step(simple_step(agent, AgentEvent.TASK_COMPLETED, decision))
                return True
            case Job.REPLACE:
                await self._step(replace_step(agent))
                await self._fence(agent)
                return True
            case Job.GIVE_UP:
                return await self._give_up(agent, decision)
            case Job.DISBAND:
                await self._disband(failed=False, reason=decision.reason, message=decision.message)
                return True
            case Job.HIBERNATE:
                return await self._hibernation.rest(agent, decision)
            case Job.FREEZE:
                return await self._freezing.rest(agent, decision)
            case Job.HOLD:
                return await self._freezing.hold(agent)
            case Job.THAW:
                return await self._freezing.thaw(agent, self._attend)
            case Job.NONE | Job.DRAIN:
                return False

    async def _create(self, agent: model.AgentRow) -> bool:
        phases = self.phases[agent.id] = Phases()
        try:
            row = await provision.create(self._parts, agent, self._step, phases)
        except FactoryError as error:
            attempt = self._attempts[agent.id] = self._attempts.get(agent.id, 0) + 1
            pause_s = reconcile.create_backoff_s(attempt)
            self._retry_at[agent.id] = (Job.CREATE, self._parts.now() + timedelta(seconds=pause_s))
            log.warning("cannot create", extra={"agent": agent.id, "error": str(error), "attempt": attempt})
            if reconcile.given_up(agent, self.known.crew, self._parts.now()):
                verdict = reconcile.Decision(Job.GIVE_UP, reason="CreateFailed", message=str(error))
                return await self._give_up(agent, verdict)
            return True
        self._attempts.pop(agent.id, None)
        return await self._assume(row) if row is not None else True

    async def _assume(self, agent: model.AgentRow) -> bool:
        phases = provision.phases_of(agent.id, self.phases)
        if agent.instance is None:
            await self.lost(agent, "InstanceGone", "its instance does not exist")
            return True
        crew = list(self.known.agents.values())
        revision = self.known.crew.last_sequence if self.known.crew else 0
        self._assuming.add(agent.id)
        try:
            joined = await self._network.join(agent, self.known.crew)
            if joined is not agent:
                phases.mark("network")
            await provision.assume(
                self._parts,
                self._sessions,
                self._wiring,
                joined,
                crew,
                revision,
                self._step,
                self._rewire,
                phases,
            )
            self._mounts.settled(agent)
        except provision.InstanceFailed as failed:
            if provision.state_corrupt(failed.error):
                await self._batcher.step(hibernation.state_lost(agent, str(failed)))
                await self._fence(agent)
                return True
            if provision.broken(failed.error):
                verdict = reconcile.Decision(Job.GIVE_UP, reason="ProfileBroken", message=str(failed))
                return await self._give_up(agent, verdict)
            await self.lost(agent, "AssumeFailed", str(failed))
        finally:
            self._assuming.discard(agent.id)
        return True

    async def _give_up(self, agent: model.AgentRow, why: reconcile.Decision) -> bool:
        if await self._step(simple_step(agent, AgentEvent.GAVE_UP, why)) is not None:
            await self._fence(agent)
        return True

    async def _attend(self, agent: model.AgentRow) -> bool:
        """Take up a serving agent's session, after a restart of this process."""
        if agent.instance is None:
            await self.lost(agent, "InstanceGone", "its instance does not exist")
            return True
        await self._parts.bus.grant(agent.crew, agent.id, agent.generation)
        now = self.known.agents.get(agent.id)
        if now is None or now.generation != agent.generation:
            # It was replaced and fenced meanwhile: what was granted just now must not outlive that.
            await self._parts.bus.revoke(agent.crew, agent.id, agent.generation)
            return True
        self._sessions.attach(agent)
        return False

    def _attended(self, agent: model.AgentRow) -> bool:
        session = self._sessions.get(agent.id)
        return agent.instance is not None and session is not None and session.generation == agent.generation

    async def _drain(self, leaving: Sequence[model.AgentRow], crew: model.CrewRow) -> bool:
        gone = await teardown.take_away(self._parts, self._sessions, leaving)
        self._taken_away |= {a.id for a in gone}
        if crew.wish_gone and self.known.agents.keys() <= self._taken_away:
            await teardown.leave_bus(self._parts, crew.id)
            await self._way_out.close()
            await self._network.leave(crew)
        await self._rewire()
        if self.settle is not None:
            # Before the last step: with it the crew is gone, and this keeper ends in whatever it does.
            await self.settle(crew.id)
        if gone:
            await self._batcher.step([teardown.drained(a) for a in gone])
        later = self._parts.now() + timedelta(seconds=TROUBLE_PAUSE_S)
        self._retry_at.update({a.id: (Job.DRAIN, later) for a in leaving if a not in gone})
        return True

    # Steps

    async def _step(self, step: model.Step) -> model.AgentRow | None:
        results = await self._batcher.step([step])
        return results[0].agent

    async def _fence(self, agent: model.AgentRow) -> None:
        """Lock the lost generation out, beside the making of its successor."""
        self._sessions.detach(agent.id, agent.generation)
        self._parts.hub.ring(REAPER)
        await self._rewire()
        await teardown.fence(self._parts, self._sessions, agent.crew, agent.id, agent.generation)

    async def _rewire(self) -> None:
        await self._wiring.rewire(self.known.agents.values())
