"""Ids sort by creation, are DNS-safe and rarely meet."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from factory_server.core import ids

moments = st.integers(0, 2**45 - 1)
entropy = st.binary(min_size=5, max_size=5)


@given(moments, moments, entropy, entropy)
def test_ids_sort_by_creation(first, second, some, other):
    if first != second:
        assert (ids.make_id("a", first, some) < ids.make_id("a", second, other)) == (first < second)


@given(moments, entropy)
def test_ids_are_dns_safe_and_of_one_length(moment, some):
    made = ids.make_id("c", moment, some)
    assert re.fullmatch(r"c[0-9a-z]{16}", made)


def test_entropy_counts():
    assert len({ids.make_id("a", 1, bytes([0, 0, 0, 0, n])) for n in range(256)}) == 256


def test_an_instance_is_named_by_agent_and_generation():
    assert ids.instance_id("u1", 3) == "u1-g3"
