"""A cursor continues what it came from; anything else is refused by name, never misread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import Invalid

CODEC = CursorCodec(b"k" * 32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(texts, texts)
def test_a_cursor_continues_where_it_came_from(scope, position):
    assert CODEC.decode(scope, CODEC.encode(scope, position)) == position


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), texts, texts)
def test_a_cursor_of_another_scope_is_refused(other, scope, position):
    cursor = CODEC.encode(scope + "!", position)
    if other != scope + "!":
        with pytest.raises(Invalid):
            CODEC.decode(other, cursor)


@given(st.text(max_size=60))
def test_a_forged_cursor_is_refused(cursor):
    with pytest.raises(Invalid) as refused:
        CODEC.decode("agents", cursor, "page_token")
    assert refused.value.reason == "CURSOR_INVALID"
    assert [v.field for v in refused.value.violations] == ["page_token"]


@given(texts, st.data())
def test_a_changed_cursor_is_refused_or_means_the_same(position, data):
    cursor = CODEC.encode("agents", position)
    place = data.draw(st.integers(0, len(cursor) - 1))
    changed = cursor[:place] + data.draw(st.sampled_from("Aa0-_")) + cursor[place + 1 :]
    try:
        assert CODEC.decode("agents", changed) == position
    except Invalid:
        assert changed != cursor


def test_another_factorys_secret_refuses():
    with pytest.raises(Invalid):
        CursorCodec(b"o" * 32).decode("agents", CODEC.encode("agents", "a1"))
