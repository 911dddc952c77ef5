"""Each agent has exactly one watchdog, and one watchdog that goes moves only its own agents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchdog.share import owner, phase, shard

NAMES = st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True)


@given(agent=st.text(), names=NAMES, gone=st.integers(0))
def test_only_the_agents_of_the_one_that_went_move(agent: str, names: list[str], gone: int) -> None:
    leaver = names[gone % len(names)]
    before, after = owner(agent, names), owner(agent, [n for n in names if n != leaver])
    assert before in (after, leaver)


@given(agent=st.text(), names=NAMES)
def test_the_order_of_the_list_does_not_matter(agent: str, names: list[str]) -> None:
    assert owner(agent, names) == owner(agent, reversed(names))


@given(agent=st.text(), count=st.integers(1, 9))
def test_static_shards_cover_each_agent_once(agent: str, count: int) -> None:
    assert sum(shard(f"{index}/{count}")(agent) for index in range(count)) == 1


def test_shards_are_of_like_size() -> None:
    mine = [shard(f"{index}/4") for index in range(4)]
    sizes = [sum(own(f"agent-{n}") for n in range(4000)) for own in mine]
    assert all(800 < size < 1200 for size in sizes)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "0/0", "1/", "/2"])
def test_a_bad_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read shard"):
        shard(text)


@given(agent=st.text())
def test_a_phase_is_a_fraction_of_the_interval(agent: str) -> None:
    assert 0 <= phase(agent) < 1
