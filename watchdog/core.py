"""Put the parts together: the registry says whom to probe, the clock when, the judge what it means."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from hyperfactory.v1.factory_service_pb2_grpc import FactoryServiceStub
from hyperfactory.v1.types_pb2 import Agent, AgentState
from watchdog import meters
from watchdog.judge import Judge, Observation, Outcome, Probe, Standing, Subject, Verdict
from watchdog.probe import Address, Prober
from watchdog.registry import Change, View, follow
from watchdog.report import Reporter
from wire.channels import open_channel
from wire.identity import FACTORY_AUTHORITY, Identity

INTERVAL_DEFAULT_S = 2.0
INTERVAL_MIN_S = 0.1
# Probes sent in one turn of the loop share its wake-ups: at 8 turns an interval 100 agents cost 2.0 % of a
# core, at 20 turns 3.2 %.
TICKS_PER_INTERVAL = 8
TICK_MIN_S = 0.02
TICK_MAX_S = 0.25

PROBED_STATES = frozenset(
    {AgentState.AGENT_STATE_WARMING, AgentState.AGENT_STATE_READY, AgentState.AGENT_STATE_BUSY}
)

log = structlog.get_logger("watchdog")


class Watchdog:
    """One watchdog; `run` it in a task of its own, and cancel that to stop it."""

    def __init__(
        self,
        factory: str,
        identity: Callable[[], Identity],
        *,
        interval_s: float = INTERVAL_DEFAULT_S,
        owns: Callable[[str], bool] = lambda _agent: True,
    ) -> None:
        self._factory = factory
        self._identity = identity
        self._interval_s = interval_s
        self._owns = owns
        self._judge = Judge(tick_s=tick_for(interval_s))
        self._prober = Prober(identity)
        self._addresses: dict[str, Address] = {}
        self._observations: list[Observation] = []  # at most two an agent between two ticks
        self._view = View()

    @property
    def synced(self) -> bool:
        """It has seen the whole registry at least once."""
        return self._view.synced

    async def run(self) -> None:
        """Watch until cancelled."""
        channel = open_channel(self._factory, self._identity, authority=FACTORY_AUTHORITY)
        stub = FactoryServiceStub(channel)
        reporter = Reporter(stub, self._interval_s)
        try:
            async with asyncio.TaskGroup() as group:
                change = self._changer(group, reporter)
                group.create_task(follow(stub, self._view, change), name="watchdog-registry")
                group.create_task(reporter.run(), name="watchdog-report")
                await self._beat(group, reporter)
        finally:
            await self._prober.close()
            await channel.close(None)

    async def _beat(self, group: asyncio.TaskGroup, reporter: Reporter) -> None:
        while True:
            # Turns of the loop in which answers that have arrived are taken in before anyone is judged.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen = self._take_observations()
            now = time.monotonic()
            verdicts = self._judge.tick(now, seen)
            if verdicts:
                reporter.put(verdicts)
                for verdict in verdicts:
                    _tell(verdict)
            for probe in self._judge.due(now):
                group.create_task(
                    self._probe(probe, self._addresses[probe.agent]), name=f"probe-{probe.agent}"
                )
            self._measure()
            await asyncio.sleep(self._judge.tick_s)

    def _take_observations(self) -> list[Observation]:
        seen, self._observations = self._observations, []
        if self._prober.can_prove_itself(datetime.now(UTC)):
            return seen
        return [observation for observation in seen if observation.outcome is not Outcome.MISSED]

    async def _probe(self, probe: Probe, address: Address) -> None:
        seen = await self._prober.check(probe, address)
        self._observations.append(seen)
        meters.PROBES_BY[seen.outcome].inc()
        if seen.outcome is not Outcome.MISSED:
            meters.ANSWER_S.observe(seen.ended - seen.sent)

    def _changer(self, group: asyncio.TaskGroup, reporter: Reporter) -> Callable[[Change], None]:
        def forget(agent: str) -> None:
            if self._addresses.pop(agent, None) is not None:
                self._judge.forget(agent)
                reporter.outbox.drop(agent)
                group.create_task(self._prober.hang_up(agent), name=f"hang-up-{agent}")

        def change(news: Change) -> None:
            for gone in news.gone:
                forget(gone)
            for agent in news.present:
                if not self._owns(agent.id):
                    continue
                if is_probed(agent):
                    self._watch(agent)
                else:
                    forget(agent.id)

        return change

    def _watch(self, agent: Agent) -> None:
        interval_s = agent.health_interval.ToNanoseconds() / 1e9 or self._interval_s
        interval_s = max(interval_s, INTERVAL_MIN_S)
        self._judge.tick_s = min(self._judge.tick_s, tick_for(interval_s))
        self._addresses[agent.id] = Address(agent.endpoint.direct, agent.endpoint.authority)
        self._judge.watch(time.monotonic(), Subject(agent.id, agent.generation, interval_s))

    def _measure(self) -> None:
        meters.WATCHED.set(len(self._judge))
        meters.BRAKED.set(self._judge.braked)
        meters.STALLS.set(self._judge.stalls)
        meters.FORGIVEN.set(self._judge.forgiven)


def is_probed(agent: Agent) -> bool:
    """It should answer: an instance of it serves, and its state says that it lives."""
    if agent.HasField("frozen_time"):
        return False  # its silence is wished
    return agent.state in PROBED_STATES and bool(agent.endpoint.direct) and agent.generation > 0


def tick_for(interval_s: float) -> float:
    """How often to look, fine enough for beats of `interval_s`."""
    return min(max(interval_s / TICKS_PER_INTERVAL, TICK_MIN_S), TICK_MAX_S)


def _tell(verdict: Verdict) -> None:
    meters.VERDICTS_BY[verdict.standing].inc()
    if not verdict.is_news:
        return
    level = log.warning if verdict.standing is Standing.DEAD else log.info
    level(
        "agent judged",
        action="agent_judged",
        agent=verdict.agent,
        generation=verdict.generation,
        standing=verdict.standing.value,
        misses=verdict.misses,
        evidence=verdict.evidence,
    )
