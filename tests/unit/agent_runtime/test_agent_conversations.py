"""What is said in contexts is remembered within its bounds, and survives hibernation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.conversations import (
    CONVERSATION_MAX_BYTES,
    CONVERSATIONS_MAX,
    CONVERSATIONS_MAX_BYTES,
    Conversations,
)
from agent_runtime.profile import ChatTurn


def texts(found: Conversations, context: str) -> list[str]:
    return [turn.content for turn in found.turns(context)]


def test_turns_alternate_and_an_empty_answer_is_none() -> None:
    found = Conversations()
    found.add("c", "one", "two")
    found.add("c", "three", "")
    assert found.turns("c") == [
        ChatTurn("user", "one"),
        ChatTurn("assistant", "two"),
        ChatTurn("user", "three"),
    ]
    assert found.turns("other") == []


def test_nothing_is_remembered_without_a_context() -> None:
    found = Conversations()
    found.add("", "one", "two")
    assert not len(found)


def test_a_long_conversation_forgets_its_beginning() -> None:
    found, long = Conversations(), "x" * (CONVERSATION_MAX_BYTES // 3)
    for number in range(4):
        found.add("c", f"{number}", long)
    assert texts(found, "c")[::2] == ["2", "3"]
    found.add("c", "too long", "x" * CONVERSATION_MAX_BYTES)
    assert found.turns("c") == []


def test_the_least_lately_used_contexts_go_first() -> None:
    found = Conversations()
    for number in range(CONVERSATIONS_MAX):
        found.add(str(number), "a", "b")
    found.add("0", "again", "b")
    found.add("one more", "a", "b")
    assert len(found) == CONVERSATIONS_MAX
    assert not found.turns("1")
    assert texts(found, "0")[2] == "again"


def test_all_together_are_bounded() -> None:
    found = Conversations()
    for number in range(CONVERSATIONS_MAX_BYTES // CONVERSATION_MAX_BYTES * 2):
        found.add(str(number), "a", "x" * (CONVERSATION_MAX_BYTES - 100))
    assert len(found.snapshot()) <= CONVERSATIONS_MAX_BYTES * 1.1
    assert not found.turns("0")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=9), st.text(max_size=9)), max_size=20))
def test_a_snapshot_brings_all_of_it_back(added: list[tuple[str, str, str]]) -> None:
    found, restored = Conversations(), Conversations()
    for exchange in added:
        found.add(*exchange)
    restored.restore(found.snapshot())
    assert [restored.turns(c) for c in "abc"] == [found.turns(c) for c in "abc"]
    assert restored.snapshot() == found.snapshot()


@pytest.mark.parametrize("snapshot", [b"{", b"[1]", b'{"a": 1}', b'{"a": [["b"]]}'])
def test_what_is_none_is_refused(snapshot: bytes) -> None:
    with pytest.raises(ValueError):
        Conversations().restore(snapshot)
