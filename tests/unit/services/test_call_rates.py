"""A caller's bucket: a burst, then a steady rate, and nobody pays for anybody else."""

from __future__ import annotations

import pytest

from factory_server.core.errors import Exhausted
from factory_server.services import call_rates
from factory_server.services.call_rates import BURST_S, CallRates

PER_S = 10.0


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(rates: CallRates, caller: str, wanted: int) -> int:
    """How many of these calls are let through."""
    for done in range(wanted):
        try:
            rates.take(caller)
        except Exhausted:
            return done
    return wanted


def test_a_burst_and_then_the_rate(clock: Clock):
    rates = CallRates(PER_S, clock)
    assert taken(rates, "a", 100) == PER_S * BURST_S
    assert taken(rates, "b", 100) == PER_S * BURST_S
    for _ in range(50):
        clock.s += 1.001 / PER_S
        assert taken(rates, "a", 2) == 1
    clock.s += 1000
    assert taken(rates, "a", 100) == PER_S * BURST_S


def test_who_waits_as_told_is_let_through(clock: Clock):
    rates = CallRates(PER_S, clock)
    taken(rates, "a", 100)
    with pytest.raises(Exhausted) as refused:
        rates.take("a")
    assert 0 < refused.value.retry_after_s <= 1 / PER_S + 1e-6
    clock.s += refused.value.retry_after_s + 1e-6
    rates.take("a")


def test_the_smallest_rate_lets_one_through(clock: Clock):
    rates = CallRates(0.01, clock)
    assert taken(rates, "a", 5) == 1
    clock.s += 101
    assert taken(rates, "a", 5) == 1


def test_no_rate_is_no_limit(clock: Clock):
    assert taken(CallRates(0, clock), "a", 100_000) == 100_000


def test_who_is_quiet_is_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(call_rates, "CALLERS_MAX", 10)
    rates = CallRates(PER_S, clock)
    for number in range(50):
        rates.take(str(number))
        assert len(rates) <= 10
    clock.s += BURST_S
    for number in range(11):
        rates.take(f"new {number}")
    assert len(rates) == 10
