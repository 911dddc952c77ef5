"""Memory keeps its bounds and its state survives a round trip, and nothing but an undamaged one."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.limits import MEMORY_KEYS_MAX, MEMORY_MAX_BYTES, STATE_MAX_BYTES, VALUE_MAX_BYTES
from agent_runtime.memory import Blob, Memory, State, pack, unpack
from wire.errors import Exhausted, Invalid

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=20), JSON, max_size=8), st.binary(max_size=50))
def test_a_state_comes_back_as_it_was(values: dict[str, Any], profile: bytes) -> None:
    memory, restored = Memory(), Memory()
    for key, value in values.items():
        memory.put(key, value)
    state = unpack(pack(State(memory.snapshot(), profile, b"said", b"numbers")))
    restored.restore(state.memory)
    assert {key: restored.get(key) for key in restored} == values
    assert (state.profile, state.conversations, state.vectors) == (profile, b"said", b"numbers")


def test_a_state_of_an_earlier_runtime_is_taken_back() -> None:
    data = b"HFSTATE1" + (10).to_bytes(4, "big") + b'{"k":"1"} ' + b"extra"
    assert unpack(Blob(data, hashlib.sha256(data).hexdigest())) == State(b'{"k":"1"} ', b"extra")


def test_vectors_may_fill_the_room_that_is_left_and_no_more() -> None:
    state = State(b"{}", b"extra", b"said")
    full = state._replace(vectors=bytes(state.room_bytes))
    assert len(pack(full).data) == STATE_MAX_BYTES
    assert full.room_bytes == 0


@given(st.data())
def test_a_damaged_state_is_refused(data: st.DataObject) -> None:
    memory = Memory()
    memory.put("k", "v")
    blob = pack(State(memory.snapshot(), b"extra"))
    position = data.draw(st.integers(0, len(blob.data) - 1))
    changed = bytearray(blob.data)
    changed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Invalid):
        unpack(Blob(bytes(changed), blob.sha256))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HFSTATE1",
        b"HFSTATE1\xff\xff\xff\xff{}",
        b"HFSTATE2\0\0\0\2",
        b"HFSTATE2\0\0\0\2\0\0\0\0\0\0\0\1{}",
        b"OTHERONE\0\0\0\2{}",
    ],
)
def test_a_foreign_form_is_refused_though_its_checksum_is_right(data: bytes) -> None:
    with pytest.raises(Invalid):
        unpack(Blob(data, hashlib.sha256(data).hexdigest()))


def test_one_value_the_keys_and_the_whole_are_bounded() -> None:
    memory = Memory()
    with pytest.raises(Exhausted):
        memory.put("k", "x" * VALUE_MAX_BYTES)
    for number in range(MEMORY_KEYS_MAX):
        memory.put(str(number), 0)
    with pytest.raises(Exhausted):
        memory.put("one more", 0)
    memory.put("0", 1)
    memory.forget("1")
    memory.put("one more", 0)


def test_room_is_given_back_when_values_are_replaced_or_forgotten() -> None:
    memory, value = Memory(), "x" * (VALUE_MAX_BYTES - 2)
    most = MEMORY_MAX_BYTES // (VALUE_MAX_BYTES + 8)
    for _ in range(3):
        for number in range(most):
            memory.put(str(number), value)
    with pytest.raises(Exhausted):
        for number in range(most, 2 * most):
            memory.put(str(number), value)
    memory.forget("0")
    memory.put("again", value)


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(Invalid):
        Memory().put("k", value)


@pytest.mark.parametrize("key", ["", "k" * 257])
def test_keys_are_bounded(key: str) -> None:
    with pytest.raises(Invalid):
        Memory().put(key, 1)


def test_a_state_beyond_the_blobs_limit_is_refused() -> None:
    with pytest.raises(Exhausted):
        pack(State(b"{}", bytes(STATE_MAX_BYTES)))
