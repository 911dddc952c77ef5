"""What waits to be reported: one verdict an agent, the newest that counts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hyperfactory.v1.factory_service_pb2 import AgentHealth, HealthVerdict, ReportHealthRequest
from watchdog.judge import Standing, Verdict
from watchdog.report import EVIDENCE_MAX_CHARS, Outbox, encode


def verdict(standing: Standing, misses: int = 0, *, agent: str = "a", generation: int = 1) -> Verdict:
    return Verdict(agent, generation, standing, misses, 10.0, "evidence", False)


SERVING = verdict(Standing.SERVING)
SUSPECT = verdict(Standing.SUSPECT, 2)
DEAD = verdict(Standing.DEAD, 4)
DEADER = verdict(Standing.DEAD, 5)
SUCCESSOR = verdict(Standing.SERVING, generation=2)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (SERVING, SUSPECT, SUSPECT),
        (SUSPECT, DEAD, DEAD),
        (DEAD, DEADER, DEADER),
        (DEAD, SUSPECT, DEAD),
        (DEAD, SERVING, SERVING),
        (DEAD, SUCCESSOR, SUCCESSOR),
        (SUCCESSOR, DEAD, SUCCESSOR),
    ],
)
def test_which_of_two_verdicts_is_kept(first: Verdict, second: Verdict, kept: Verdict) -> None:
    outbox = Outbox()
    outbox.put(first)
    outbox.put(second)
    assert outbox.take(10) == [kept]
    outbox.put(second)
    outbox.put_back([first])
    assert outbox.take(10) == [kept]


def test_deaths_go_first_when_not_all_fit() -> None:
    outbox = Outbox()
    for number in range(10):
        outbox.put(verdict(Standing.SERVING, agent=f"a{number}"))
    outbox.put(verdict(Standing.DEAD, 4, agent="z"))
    assert outbox.take(3)[0].agent == "z"
    assert len(outbox) == 8


def test_nothing_is_told_of_an_agent_that_is_gone() -> None:
    outbox = Outbox()
    outbox.put(DEAD)
    outbox.drop("a")
    assert not outbox


def test_the_wall_clock_shows_when_it_was_last_seen_and_evidence_is_cut() -> None:
    long = Verdict("a", 3, Standing.DEAD, 4, 10.0, "x" * 5000, True)
    (report,) = encode([long], 12.5, datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC))
    assert report.last_seen.ToDatetime() == datetime(2026, 1, 1, 0, 0, 7, 500000)  # noqa: DTZ001
    assert len(report.evidence) == EVIDENCE_MAX_CHARS
    assert (report.agent, report.generation, report.misses) == ("a", 3, 4)
    assert report.verdict == HealthVerdict.HEALTH_VERDICT_DEAD


def test_one_that_never_answered_has_no_last_seen() -> None:
    (report,) = encode([Verdict("a", 1, Standing.SUSPECT, 1, None, "", False)], 5, datetime.now(UTC))
    assert not report.HasField("last_seen")


def test_every_standing_has_a_word_on_the_wire() -> None:
    reports = encode([verdict(standing) for standing in Standing], 20, datetime.now(UTC))
    assert isinstance(reports[0], AgentHealth)
    assert len({report.verdict for report in reports}) == len(Standing)
    assert ReportHealthRequest(reports=reports).ByteSize() > 0
