"""Answers of agents are read strictly, however their bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_server.upstream.limits import HEAD_MAX_BYTES
from factory_server.upstream.parsing import AnswerParser, MalformedError

WITH_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nX-Some: a  \r\n\r\nhello world"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=1\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


def read(data: bytes, cuts: list[int]) -> tuple[AnswerParser, bytes]:
    """Feed the bytes in pieces; the parser and the body."""
    parser = AnswerParser()
    body, start = b"", 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        body += b"".join(parser.feed(data[start:end]))
        start = end
    return parser, body


@given(st.sampled_from([WITH_LENGTH, CHUNKED]), st.lists(st.integers(0, 200), max_size=12))
def test_an_answer_is_the_same_however_it_is_cut(data: bytes, cuts: list[int]):
    parser, body = read(data, cuts)
    assert parser.ended
    assert parser.head is not None
    assert (parser.head.status, parser.head.keep_alive, body) == (200, True, b"hello world")


def test_headers_are_by_lower_case_name_and_trimmed():
    parser, _ = read(WITH_LENGTH, [])
    assert parser.head is not None
    assert list(parser.head.headers) == [("content-length", "11"), ("x-some", "a")]


def test_an_answer_without_a_body_ends_with_its_head():
    parser, body = read(EMPTY, [])
    parser.feed(b"")
    assert parser.head is not None
    assert body == b""
    assert parser.ended


def test_a_body_without_a_length_lasts_until_the_end():
    parser, body = read(b"HTTP/1.1 200 OK\r\n\r\nsome", [])
    assert not parser.ended
    parser.end_of_stream()
    assert parser.ended
    assert parser.head is not None
    assert (body, parser.head.keep_alive) == (b"some", False)


@pytest.mark.parametrize("data", [WITH_LENGTH, CHUNKED])
def test_an_answer_that_breaks_off_is_none(data: bytes):
    for cut in range(len(data) - 1):
        parser, _ = read(data[:cut], [])
        with pytest.raises(MalformedError):
            parser.end_of_stream()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\nb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: trailer\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * HEAD_MAX_BYTES,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 400,
    ],
)
def test_what_is_no_answer_is_refused(data: bytes):
    with pytest.raises(MalformedError):
        read(data, [])


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_noise_is_refused_or_waited_for_and_nothing_else(data: bytes, cuts: list[int]):
    try:
        read(data, cuts)
    except MalformedError:
        return


@given(st.sampled_from([WITH_LENGTH, CHUNKED]), st.integers(0, 90), st.binary(max_size=6))
def test_a_damaged_answer_never_crashes_the_reader(data: bytes, place: int, damage: bytes):
    place %= len(data)
    try:
        read(data[:place] + damage + data[place + len(damage) :], [])
    except MalformedError:
        return
