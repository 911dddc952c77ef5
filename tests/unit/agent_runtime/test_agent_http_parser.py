"""The parser of HTTP/1.1 requests: one reading however the bytes are cut, and none of what has two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.http.limits import HEAD_MAX_BYTES, HEADERS_MAX
from agent_runtime.http.messages import HttpError, Request
from agent_runtime.http.parser import Parser

GET = b"GET /health?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /mcp HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\nX-A: 1\r\nx-a:  2 \r\n\r\nhello"
CHUNKED = b"POST /mcp HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED += b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n"


def parsed(data: bytes, body_max_bytes: int = 100) -> list[Request]:
    parser = Parser(body_max_bytes)
    parser.feed(data)
    found = []
    while (request := parser.next()) is not None:
        found.append(request)
    return found


def test_requests_follow_one_another_on_a_connection() -> None:
    first, second, third = parsed(GET + POST + CHUNKED)
    assert (first.method, first.path, first.query, first.body) == ("GET", "/health", "a=1", b"")
    assert (second.body, second.headers["x-a"]) == (b"hello", "1, 2")
    assert third.body == b"hello world"


@given(st.lists(st.integers(1, 60), max_size=40))
def test_the_reading_does_not_depend_on_where_the_bytes_are_cut(sizes: list[int]) -> None:
    whole = GET + POST + CHUNKED + GET
    parser, found, rest = Parser(100), [], whole
    for size in [*sizes, len(whole)]:
        parser.feed(rest[:size])
        rest = rest[size:]
        while (request := parser.next()) is not None:
            found.append(request)
    assert found == parsed(whole)
    assert parser.idle


def with_headers(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["POST /mcp HTTP/1.1", "host: x", *lines]).encode("latin-1") + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (with_headers("host: y"), 400),
        (with_headers("content-length: 1", "content-length: 2"), 400),
        (with_headers("content-length: 5", "transfer-encoding: chunked"), 400),
        (with_headers("content-length: +5"), 400),
        (with_headers("content-length: 5 5"), 400),
        (with_headers("content-length: 101"), 413),
        (with_headers("transfer-encoding: gzip, chunked"), 501),
        (with_headers("transfer-encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n"), 400),
        (with_headers("transfer-encoding: chunked", body=b"5\r\nhelloX\r\n0\r\n\r\n"), 400),
        (with_headers("transfer-encoding: chunked", body=b"65\r\n"), 413),
        (with_headers("transfer-encoding: chunked", body=b"0\r\nx-late: 1\r\n\r\n"), 400),
        (with_headers("x-hyperfactory-scopes: reviewer", "x-hyperfactory-scopes: admin"), 400),
        (with_headers("mcp-name: a", "mcp-name: b"), 400),
        (with_headers("no colon"), 400),
        (with_headers("bad name: 1"), 400),
        (with_headers("folded: a", " b"), 400),
        (with_headers("control: \x01"), 400),
        (with_headers(*(f"h{number}: 1" for number in range(HEADERS_MAX))), 431),
        (b"GET /" + b"a" * HEAD_MAX_BYTES, 431),
    ],
)
def test_what_is_no_request_or_two_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(HttpError) as refused:
        parsed(data)
    assert refused.value.status == status
