"""Exits reach every consumer, also over a source that breaks; a consumer that sleeps is told so."""

from __future__ import annotations

import pytest

from factory_server.core.errors import Unavailable
from factory_server.core.sandbox import Exit
from factory_server.drivers.exitstream import PENDING_MAX, ExitHub


async def nothing() -> None:
    """A source that needs no renewal."""


async def test_a_stream_starts_when_it_is_asked_for() -> None:
    hub = ExitHub(nothing)
    hub.push(Exit("early"))
    stream = hub.stream()
    hub.push(Exit("a"))
    hub.push(Exit("b"))
    hub.close()
    assert [item.instance async for item in stream] == ["a", "b"]


async def test_a_lost_source_is_renewed_until_it_works() -> None:
    tries = []

    async def renew() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise Unavailable("not yet")
        hub.push(Exit("after"))

    hub = ExitHub(renew, pause_s=0.001)
    stream = hub.stream()  # which looks at once: the source may be lost already
    assert (await anext(stream)).instance == "after"
    assert len(tries) == 3
    hub.push(None)
    assert (await anext(stream)).instance == "after"
    assert len(tries) == 4


async def test_a_consumer_that_sleeps_learns_that_it_missed_something() -> None:
    hub = ExitHub(nothing)
    stream = hub.stream()
    for number in range(PENDING_MAX + 1):
        hub.push(Exit(f"n{number}"))
    with pytest.raises(Unavailable, match="look at the list again"):
        await anext(stream)
