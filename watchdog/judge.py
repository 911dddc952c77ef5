"""Decide from probes' outcomes who is alive, suspect or dead; no clock and no I/O of its own.

The edge calls `tick` at a steady pace with all outcomes since the tick before. Three things keep a sick
watchdog, or a sick host, from being mistaken for dead agents:

- a probe in flight while the watchdog itself was late does not count when it is missed (self-stall);
- when more than half of at least five agents are silent together, nobody is condemned before a second full
  series of probes on new connections, at a wider interval (brake);
- when that brake is let go, everybody's misses start from nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from watchdog.share import phase

MISSES_ALLOWED = 3
STALL_INTERVALS = 0.5
BRAKE_MIN_AGENTS = 5
BRAKE_SHARE = 0.5
BRAKE_WIDENING = 2
BEAT_GRAIN = 0.01


class Outcome(Enum):
    """How one probe ended."""

    SERVING = "serving"
    UNWELL = "unwell"  # it answered, but not SERVING
    MISSED = "missed"


class Standing(Enum):
    """What the watchdog says about an agent."""

    SERVING = "serving"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Subject:
    """One instance of an agent that shall be probed."""

    agent: str
    generation: int
    interval_s: float


@dataclass(frozen=True, slots=True)
class Probe:
    """An order to probe; `fresh` asks for a new connection, so that the answer is independent."""

    agent: str
    generation: int
    deadline_s: float
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """How the probe that was sent at `sent` ended at `ended`, both on the watchdog's monotonic clock."""

    agent: str
    generation: int
    sent: float
    ended: float
    outcome: Outcome
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be reported about one instance; `last_seen` is monotonic, None if it never answered."""

    agent: str
    generation: int
    standing: Standing
    misses: int
    last_seen: float | None
    evidence: str
    is_news: bool

    @property
    def urgent(self) -> bool:
        """It is not to wait for the next batch."""
        return self.is_news or self.standing is Standing.DEAD


@dataclass(slots=True)
class _Record:
    subject: Subject
    misses: int = 0
    series_start: float = 0.0
    last_seen: float | None = None
    last_answered: float = float("-inf")  # when the newest answered probe was sent
    last_judged: float = float("-inf")  # when the newest judged probe was sent
    beat: float = 0.0  # when the next probe is due
    forgive_before: float = float("-inf")  # misses of probes sent before this do not count
    held: bool = False  # the brake asked for a second series
    reconnect: bool = False
    standing: Standing | None = None


@dataclass(slots=True)
class Judge:
    """The watchdog's memory of every agent it probes."""

    tick_s: float = 0.1
    braked: bool = False
    stalls: int = 0
    forgiven: int = 0
    _records: dict[str, _Record] = field(default_factory=dict)
    _due: list[tuple[float, str]] = field(default_factory=list)
    _last_tick: float | None = None
    _brake_since: float = 0.0

    def __len__(self) -> int:
        return len(self._records)

    def watch(self, now: float, subject: Subject) -> None:
        """Probe this instance from its next beat on. A new generation starts with nothing against it."""
        known = self._records.get(subject.agent)
        if known is not None and known.subject.generation > subject.generation:
            return
        if known is not None and known.subject == subject:
            return
        if known is not None and known.subject.generation == subject.generation:
            known.subject = subject
            return
        self._records[subject.agent] = _Record(subject, forgive_before=now)
        self._plan(self._records[subject.agent], now)

    def forget(self, agent: str) -> None:
        """Stop probing; whatever is still in flight is ignored."""
        self._records.pop(agent, None)

    def due(self, now: float) -> list[Probe]:
        """The probes to send now; each agent's next beat is planned, and beats that passed are skipped."""
        orders = []
        while self._due and self._due[0][0] <= now:
            beat, agent = heapq.heappop(self._due)
            record = self._records.get(agent)
            if record is None or record.beat != beat:
                continue  # planned for an instance that is no longer watched
            interval_s = self._interval(record.subject)
            orders.append(Probe(agent, record.subject.generation, interval_s, record.reconnect))
            record.reconnect = False
            self._plan(record, now)
        return orders

    def tick(self, now: float, observations: Iterable[Observation]) -> list[Verdict]:
        """Judge everything seen since the tick before; the verdicts are what changed or was confirmed."""
        self._forgive_stall(now)
        judged = {o.agent: o for o in observations if self._note(o)}
        self._brake(now)
        return [self._verdict(self._records[agent], seen) for agent, seen in judged.items()]

    def _forgive_stall(self, now: float) -> None:
        late = 0.0 if self._last_tick is None else now - self._last_tick - self.tick_s
        self._last_tick = now
        if late <= 0:
            return
        stalled = [r for r in self._records.values() if late > STALL_INTERVALS * r.subject.interval_s]
        for record in stalled:
            record.forgive_before = now
        self.stalls += bool(stalled)

    def _note(self, seen: Observation) -> bool:
        record = self._records.get(seen.agent)
        if record is None or record.subject.generation != seen.generation:
            return False
        missed = seen.outcome is Outcome.MISSED
        if missed and seen.sent < record.forgive_before:
            self.forgiven += 1
            return False
        if missed and seen.sent < record.last_answered:
            return False  # a later probe was answered already
        record.last_judged = max(record.last_judged, seen.sent)
        if missed:
            record.series_start = record.series_start if record.misses else seen.sent
            record.misses += 1
        else:
            record.misses, record.held = 0, False
            record.last_seen, record.last_answered = seen.ended, seen.sent
        return True

    def _brake(self, now: float) -> None:
        """Engage while too many are silent together; on release everybody starts anew."""
        if self.braked:
            if not self._mass_silence(self._brake_since):
                self._release(now)
        else:
            candidates = [r for r in self._records.values() if r.misses > MISSES_ALLOWED]
            starts = [r.series_start for r in candidates if r.standing is not Standing.DEAD]
            if not starts or not self._mass_silence(min(starts)):
                return
            self.braked, self._brake_since = True, min(starts)
        for record in self._records.values():
            if record.misses > MISSES_ALLOWED and not record.held:
                record.held = record.reconnect = True

    def _mass_silence(self, since: float) -> bool:
        """Only those count that were probed since the silence began; the others could not have told."""
        witnesses = [r for r in self._records.values() if r.last_judged >= since]
        silent = sum(r.misses > 0 for r in witnesses)
        return len(witnesses) >= BRAKE_MIN_AGENTS and silent > BRAKE_SHARE * len(witnesses)

    def _release(self, now: float) -> None:
        self.braked = False
        for record in self._records.values():
            record.misses, record.held, record.forgive_before = 0, False, now

    def _verdict(self, record: _Record, seen: Observation) -> Verdict:
        before, record.standing = record.standing, self._standing(record, seen)
        evidence = seen.evidence
        if record.held and record.standing is Standing.SUSPECT:
            evidence = f"{evidence}; most agents are silent together, so a second series decides"
        is_news = before is not record.standing and (before or record.standing is Standing.SUSPECT)
        return Verdict(
            agent=seen.agent,
            generation=seen.generation,
            standing=record.standing,
            misses=record.misses,
            last_seen=record.last_seen,
            evidence=evidence,
            is_news=bool(is_news),
        )

    def _standing(self, record: _Record, seen: Observation) -> Standing:
        needed = (2 if record.held else 1) * (MISSES_ALLOWED + 1)
        if record.misses >= needed:
            return Standing.DEAD
        if record.misses or seen.outcome is not Outcome.SERVING:
            return Standing.SUSPECT
        return Standing.SERVING

    def _interval(self, subject: Subject) -> float:
        return subject.interval_s * (BRAKE_WIDENING if self.braked else 1)

    def _plan(self, record: _Record, now: float) -> None:
        """The first beat after `now` in this agent's own rhythm; one that is all but now is now's own."""
        interval_s = self._interval(record.subject)
        wait_s = interval_s - (now - phase(record.subject.agent) * interval_s) % interval_s
        if wait_s < interval_s * BEAT_GRAIN:
            wait_s += interval_s
        record.beat = now + wait_s
        heapq.heappush(self._due, (record.beat, record.subject.agent))
