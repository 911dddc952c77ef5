"""The judge on a virtual clock: who is condemned, when, and who never is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from watchdog.judge import (
    BEAT_GRAIN,
    MISSES_ALLOWED,
    Judge,
    Observation,
    Outcome,
    Probe,
    Standing,
    Subject,
    Verdict,
)
from watchdog.share import phase

TICK_S = 0.1
INTERVAL_S = 2.0

# When does the agent answer a probe sent at `t`? None: never.
Latency = Callable[[str, float], float | None]


def always(latency_s: float) -> Latency:
    return lambda _agent, _sent: latency_s


@dataclass
class World:
    """Agents and a watchdog on one virtual clock. The watchdog sees what happened only when it wakes."""

    latency: Latency
    judge: Judge = field(default_factory=lambda: Judge(tick_s=TICK_S))
    now: float = 1000.0
    flying: list[tuple[Probe, float]] = field(default_factory=list)
    verdicts: list[tuple[float, Verdict]] = field(default_factory=list)
    probes: list[tuple[float, Probe]] = field(default_factory=list)

    def watch(self, *agents: str, generation: int = 1, interval_s: float = INTERVAL_S) -> None:
        for agent in agents:
            self.judge.watch(self.now, Subject(agent, generation, interval_s))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.wake(TICK_S)

    def wake(self, after_s: float) -> None:
        """One turn of the loop. A probe that could be both answered and overdue by now counts as overdue."""
        self.now += after_s
        ended = [seen for flight in self.flying if (seen := self._outcome(*flight))]
        self.flying = [flight for flight in self.flying if not self._outcome(*flight)]
        self.verdicts += [(self.now, verdict) for verdict in self.judge.tick(self.now, ended)]
        for probe in self.judge.due(self.now):
            self.probes.append((self.now, probe))
            self.flying.append((probe, self.now))

    def _outcome(self, probe: Probe, sent: float) -> Observation | None:
        latency_s = self.latency(probe.agent, sent)
        if self.now >= sent + probe.deadline_s:
            outcome = Outcome.MISSED
        elif latency_s is not None and self.now >= sent + latency_s:
            outcome = Outcome.SERVING
        else:
            return None
        return Observation(probe.agent, probe.generation, sent, self.now, outcome, outcome.value)

    def dead(self) -> set[str]:
        return {v.agent for _, v in self.verdicts if v.standing is Standing.DEAD}

    def condemned_at(self, agent: str) -> float:
        return next(t for t, v in self.verdicts if v.agent == agent and v.standing is Standing.DEAD)


STALLS = st.lists(st.floats(0, 30, allow_nan=False), max_size=60)


@settings(max_examples=200)
@given(stalls=STALLS, agents=st.integers(1, 8), latency=st.floats(0, 0.4))
def test_an_agent_that_answers_is_never_condemned_however_the_watchdog_stalls(
    stalls: Sequence[float], agents: int, latency: float
) -> None:
    world = World(always(latency * INTERVAL_S))
    world.watch(*(f"a{n}" for n in range(agents)))
    for stall in stalls:
        world.wake(TICK_S + stall)
        world.run(stall % 3)
    assert not world.dead()
    assert all(v.standing is Standing.SERVING for _, v in world.verdicts)


@given(name=st.text("abcdef0123456789", min_size=1), interval=st.floats(0.5, 10), start=st.floats(0, 1e6))
def test_an_agent_that_never_answers_is_condemned_within_four_intervals_of_its_first_probe(
    name: str, interval: float, start: float
) -> None:
    world = World(always(float("inf")), now=start)
    world.watch(name, interval_s=interval)
    for _ in range(int(interval * 6 / TICK_S) + 2):
        world.wake(TICK_S)
    first = world.probes[0][0]
    assert first - start <= interval * (1 + BEAT_GRAIN) + 2 * TICK_S
    took = world.condemned_at(name) - first
    # Each of the four probes may be sent one tick after its beat.
    assert (
        (MISSES_ALLOWED + 1) * interval - 2 * TICK_S <= took <= (MISSES_ALLOWED + 1) * interval + 2 * TICK_S
    )


@given(died=st.floats(0, 10), agents=st.integers(6, 20))
def test_one_hung_among_many_is_condemned_alone_and_in_time(died: float, agents: int) -> None:
    world = World(lambda agent, sent: float("inf") if agent == "a0" and sent >= 1000 + died else 0.01)
    world.watch(*(f"a{n}" for n in range(agents)))
    world.run(died + 5 * INTERVAL_S + 3 * TICK_S)
    assert world.dead() == {"a0"}
    assert world.condemned_at("a0") - 1000 - died > MISSES_ALLOWED * INTERVAL_S


@given(pause=st.floats(0.1, MISSES_ALLOWED * INTERVAL_S - 0.2), at=st.floats(1, 5))
def test_a_pause_of_three_intervals_condemns_nobody(pause: float, at: float) -> None:
    def latency(_: str, sent: float) -> float:
        thaw = 1000 + at + pause
        return 0.01 if not 1000 + at <= sent < thaw else thaw - sent + 0.01

    world = World(latency)
    world.watch("a", "b", "c")
    world.run(at + pause + 5 * INTERVAL_S)
    assert not world.dead()
    assert {v.standing for t, v in world.verdicts if t > 1000 + at + pause + 2 * INTERVAL_S} == {
        Standing.SERVING
    }


@given(share=st.floats(0.51, 1.0), agents=st.integers(5, 30), outage=st.floats(8, 15))
def test_an_outage_of_most_condemns_nobody_if_it_ends_before_the_second_series(
    share: float, agents: int, outage: float
) -> None:
    silent = {f"a{n}" for n in range(agents) if n < agents * share}

    def latency(agent: str, sent: float) -> float:
        return float("inf") if agent in silent and 1005 <= sent < 1005 + outage else 0.01

    world = World(latency)
    world.watch(*(f"a{n}" for n in range(agents)))
    world.run(5 + outage + 10 * INTERVAL_S)
    assert not world.dead()
    assert not world.judge.braked


def test_the_brake_probes_on_new_connections_at_a_wider_interval_and_then_condemns() -> None:
    world = World(lambda _agent, sent: float("inf") if sent >= 1005 else 0.01)
    world.watch(*(f"a{n}" for n in range(10)))
    world.run(5 + 5 * INTERVAL_S)
    assert world.judge.braked
    assert not world.dead()
    world.run(2 * INTERVAL_S + 2)
    assert not world.dead()
    fresh = [probe for _, probe in world.probes if probe.fresh]
    assert {probe.agent for probe in fresh} == {f"a{n}" for n in range(10)}
    assert all(probe.deadline_s == 2 * INTERVAL_S for probe in fresh)
    world.run(10 * INTERVAL_S)
    assert world.dead() == {f"a{n}" for n in range(10)}


def test_four_of_four_silent_are_condemned_without_a_brake() -> None:
    world = World(always(float("inf")))
    world.watch("a", "b", "c", "d")
    world.run(5 * INTERVAL_S + 1)
    assert world.dead() == {"a", "b", "c", "d"}


def test_agents_that_were_not_probed_since_the_silence_began_are_no_witnesses() -> None:
    """Twenty slow agents that answered a minute ago must not outvote six fast ones that all went silent."""
    world = World(lambda agent, sent: float("inf") if agent.startswith("f") and sent >= 1130 else 0.01)
    world.watch(*(f"s{n}" for n in range(20)), interval_s=120)
    world.watch(*(f"f{n}" for n in range(6)), interval_s=0.4)
    world.run(132.5)
    assert not world.dead()
    assert world.judge.braked


def test_a_new_generation_starts_with_nothing_against_it() -> None:
    world = World(lambda agent, sent: float("inf"))
    world.watch("a")
    world.run(4 * INTERVAL_S)
    world.watch("a", generation=2)
    replaced = world.now
    world.run(3 * INTERVAL_S)
    assert not world.dead()
    world.run(2 * INTERVAL_S + 1)
    assert world.condemned_at("a") - replaced > MISSES_ALLOWED * INTERVAL_S
    assert {v.generation for _, v in world.verdicts if v.standing is Standing.DEAD} == {2}


def test_an_older_generation_is_neither_watched_nor_heard() -> None:
    judge = Judge(tick_s=TICK_S)
    judge.watch(0, Subject("a", 2, INTERVAL_S))
    judge.watch(0, Subject("a", 1, INTERVAL_S))
    assert {p.generation for p in judge.due(INTERVAL_S)} == {2}
    assert not judge.tick(3, [Observation("a", 1, 0, 2, Outcome.MISSED)])


def test_not_serving_is_suspect_and_never_dead() -> None:
    judge = Judge(tick_s=TICK_S)
    judge.watch(0, Subject("a", 1, INTERVAL_S))
    seen = [
        v
        for n in range(1, 50)
        for v in judge.tick(n * TICK_S, [Observation("a", 1, n, n, Outcome.UNWELL, "no")])
    ]
    assert {v.standing for v in seen} == {Standing.SUSPECT}
    assert {v.misses for v in seen} == {0}


def test_a_miss_that_is_reported_after_a_later_answer_does_not_count() -> None:
    judge = Judge(tick_s=TICK_S)
    judge.watch(0, Subject("a", 1, INTERVAL_S))
    late = Observation("a", 1, 1.0, 3.001, Outcome.MISSED)
    (verdict,) = judge.tick(3.1, [Observation("a", 1, 3.0, 3.0005, Outcome.SERVING), late])
    assert (verdict.standing, verdict.misses) == (Standing.SERVING, 0)


def test_an_agent_forgotten_and_watched_again_keeps_one_beat() -> None:
    judge = Judge(tick_s=TICK_S)
    for _ in range(5):
        judge.watch(0, Subject("a", 1, INTERVAL_S))
        judge.forget("a")
    judge.watch(0, Subject("a", 1, INTERVAL_S))
    sent = [t for t in range(1, 401) for _ in judge.due(t * TICK_S)]
    assert len(sent) == 400 * TICK_S / INTERVAL_S


def test_a_change_of_interval_takes_effect_without_a_fresh_start() -> None:
    world = World(always(float("inf")))
    world.watch("a")
    world.run(3 * INTERVAL_S)
    world.watch("a", interval_s=0.5)
    world.run(3 * INTERVAL_S)
    assert world.dead() == {"a"}


def test_a_dead_verdict_is_repeated_while_nothing_changes_and_taken_back_by_an_answer() -> None:
    world = World(lambda _agent, sent: float("inf") if sent < 1012 else 0.01)
    world.watch("a")
    world.run(24)
    standings = [v.standing for _, v in world.verdicts]
    assert standings.count(Standing.DEAD) >= 2
    assert standings[-1] is Standing.SERVING


def test_beats_of_many_agents_are_spread_over_the_interval() -> None:
    world = World(always(0.01))
    world.watch(*(f"agent-{n}" for n in range(1000)))
    world.run(INTERVAL_S)
    per_tick = [sum(t == sent for sent, _ in world.probes) for t in {sent for sent, _ in world.probes}]
    assert max(per_tick) < 3 * 1000 * TICK_S / INTERVAL_S


@given(agent=st.text(), interval=st.floats(0.1, 600))
def test_a_beat_taken_exactly_on_time_is_not_taken_again(agent: str, interval: float) -> None:
    judge = Judge(tick_s=TICK_S)
    judge.watch(0.0, Subject(agent, 1, interval))
    beat = min(t for t in (interval - (-phase(agent) * interval) % interval, interval) if t > 0)
    sent = [probe for t in (beat, beat, beat * (1 + 1e-12), beat + interval / 2) for probe in judge.due(t)]
    assert len(sent) <= 1


def test_what_was_in_flight_before_the_watch_began_does_not_count() -> None:
    judge = Judge(tick_s=TICK_S)
    judge.watch(5.0, Subject("a", 1, INTERVAL_S))
    assert not judge.tick(5.1, [Observation("a", 1, 4.0, 5.05, Outcome.MISSED)])
