"""The whole watchdog against real health servers: who is reported dead, with what evidence, and who never is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from hyperfactory.v1.factory_service_pb2 import AgentHealth, HealthVerdict
from hyperfactory.v1.types_pb2 import AgentState
from tests.integration.watchdog.conftest import Stage
from watchdog import Watchdog
from watchdog.probe import Prober
from wire.identity import IdentityFile, load_identity, part_spiffe

DEAD = HealthVerdict.HEALTH_VERDICT_DEAD
SUSPECT = HealthVerdict.HEALTH_VERDICT_SUSPECT
SERVING = HealthVerdict.HEALTH_VERDICT_SERVING
INTERVAL_S = 0.3

Until = Callable[[Callable[[], object]], Awaitable[None]]


@asynccontextmanager
async def watching(stage: Stage) -> AsyncIterator[Watchdog]:
    """A running watchdog; whatever it raises fails the test."""
    identity = IdentityFile(stage.watchdog_identity())
    watchdog = Watchdog(stage.factory_target, identity.current, interval_s=INTERVAL_S)
    with suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as group:
            running = group.create_task(watchdog.run(), name="watchdog")
            try:
                yield watchdog
            finally:
                running.cancel()


def seen(stage: Stage, agent: str, verdict: HealthVerdict.ValueType) -> list[AgentHealth]:
    return [report for report in stage.registry.about(agent) if report.verdict == verdict]


async def test_a_frozen_agent_is_condemned_and_a_slow_one_is_not(stage: Stage, until: Until) -> None:
    await stage.start_agent("frozen")
    await stage.start_agent("slow", delay_s=INTERVAL_S * 0.7)
    async with stage.factory(), watching(stage):
        await until(lambda: seen(stage, "frozen", SERVING) and seen(stage, "slow", SERVING))
        loop = asyncio.get_running_loop()
        frozen_at = loop.time()
        stage.signal("frozen", signal.SIGSTOP)
        await until(lambda: seen(stage, "frozen", DEAD))
        assert 3 * INTERVAL_S < loop.time() - frozen_at < 5 * INTERVAL_S + 1
        report = seen(stage, "frozen", DEAD)[0]
        assert report.misses == 4
        assert report.generation == 1
        assert "DEADLINE_EXCEEDED" in report.evidence
        assert report.last_seen.seconds > 0
        assert not seen(stage, "slow", DEAD)
        stage.signal("frozen", signal.SIGCONT)
        before = len(seen(stage, "frozen", SERVING))
        await until(lambda: len(seen(stage, "frozen", SERVING)) > before)


async def test_a_killed_agent_is_condemned_as_unreachable(stage: Stage, until: Until) -> None:
    await stage.start_agent("killed")
    async with stage.factory(), watching(stage):
        await until(lambda: seen(stage, "killed", SERVING))
        stage.signal("killed", signal.SIGKILL)
        await until(lambda: seen(stage, "killed", DEAD))
        assert "UNAVAILABLE" in seen(stage, "killed", DEAD)[0].evidence


async def test_not_serving_is_suspect_and_told_at_once(stage: Stage, until: Until) -> None:
    await stage.start_agent("unwell", serving=False)
    async with stage.factory(), watching(stage):
        await until(lambda: len(seen(stage, "unwell", SUSPECT)) >= 6)
        assert not seen(stage, "unwell", DEAD)
        assert "NOT_SERVING" in stage.registry.about("unwell")[0].evidence


async def test_an_impostor_with_another_agents_certificate_is_never_serving(
    stage: Stage, until: Until
) -> None:
    await stage.start_agent("alice")
    impostor = stage.agent("bob")
    impostor.endpoint.direct = stage.agent("alice").endpoint.direct
    stage.registry.put(impostor)
    async with stage.factory(), watching(stage):
        await until(lambda: len(stage.registry.about("bob")) > 3)
        assert not seen(stage, "bob", SERVING)
        assert stage.registry.about("bob")[0].evidence


async def test_while_the_factory_is_away_nobody_dies_and_the_news_waits(stage: Stage, until: Until) -> None:
    await stage.start_agent("alive")
    await stage.start_agent("frozen")
    async with watching(stage):
        async with stage.factory():
            await until(lambda: seen(stage, "alive", SERVING) and seen(stage, "frozen", SERVING))
        stage.signal("frozen", signal.SIGSTOP)
        await asyncio.sleep(6 * INTERVAL_S)  # the factory is away for longer than it takes to condemn
        assert not stage.registry.about("frozen") or not seen(stage, "frozen", DEAD)
        async with stage.factory():
            await until(lambda: seen(stage, "frozen", DEAD))
            before = len(seen(stage, "alive", SERVING))
            await until(lambda: len(seen(stage, "alive", SERVING)) > before)
        assert not seen(stage, "alive", DEAD)


async def test_a_refused_report_is_repeated_until_it_is_accepted(stage: Stage, until: Until) -> None:
    await stage.start_agent("frozen")
    async with stage.factory(), watching(stage):
        await until(lambda: seen(stage, "frozen", SERVING))
        stage.registry.refuse = True
        stage.signal("frozen", signal.SIGSTOP)
        await asyncio.sleep(6 * INTERVAL_S)
        stage.registry.refuse = False
        await until(lambda: seen(stage, "frozen", DEAD))


async def test_a_stopped_agent_is_left_alone_and_a_successor_gets_full_grace(
    stage: Stage, until: Until
) -> None:
    await stage.start_agent("agent")
    async with stage.factory(), watching(stage):
        await until(lambda: seen(stage, "agent", SERVING))
        stage.signal("agent", signal.SIGSTOP)
        await until(lambda: [r for r in stage.registry.about("agent") if r.misses >= 2])
        stage.registry.put(stage.agent("agent", generation=2))
        await until(lambda: [r for r in stage.registry.about("agent") if r.generation == 2])
        assert next(r for r in stage.registry.about("agent") if r.generation == 2).misses == 1
        gone = stage.agent("agent", generation=2)
        gone.state = AgentState.AGENT_STATE_STOPPED
        stage.registry.put(gone)
        await asyncio.sleep(INTERVAL_S)
        before = len(stage.registry.reports)
        await asyncio.sleep(5 * INTERVAL_S)
        assert len(stage.registry.reports) == before


async def test_a_stall_of_the_watchdog_itself_condemns_nobody(stage: Stage, until: Until) -> None:
    """The shipped program, frozen again and again for longer than it takes to condemn."""
    names = ("one", "two", "three")
    for name in names:
        await stage.start_agent(name)
    async with stage.factory():
        await stage.start_watchdog("watchdog", INTERVAL_S)
        await until(lambda: all(seen(stage, name, SERVING) for name in names))
        for _ in range(3):
            stage.signal("watchdog", signal.SIGSTOP)
            await asyncio.sleep(5 * INTERVAL_S)
            stage.signal("watchdog", signal.SIGCONT)
            before = len(stage.registry.reports)
            await until(lambda before=before: len(stage.registry.reports) > before + 2 * len(names))
        assert {report.verdict for report in stage.registry.reports} == {SERVING}
        stage.signal("watchdog", signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await stage.processes["watchdog"].wait() == 0


def test_a_watchdog_knows_when_its_own_certificate_has_expired(stage: Stage) -> None:
    """With one that has, every handshake fails and everybody would seem dead."""
    shown = [load_identity(stage.watchdog_identity(lasts_s=60))]
    prober = Prober(lambda: shown[0])
    now = datetime.now(UTC)
    assert prober.can_prove_itself(now)
    later = now + timedelta(minutes=2)
    assert not prober.can_prove_itself(later)
    shown[0] = load_identity(stage.authority.issue("renewed", part_spiffe("watchdog")))
    assert prober.can_prove_itself(later)
