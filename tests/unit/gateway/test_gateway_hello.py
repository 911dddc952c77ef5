"""The server name is read from every honest ClientHello and from nothing else; no input crashes the parser."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hello import HELLO_MAX_BYTES, NotAClientHello, server_name

NAME = "coder-1.crew-abc.svc"
LABELS = st.from_regex(r"\A[a-z][a-z0-9-]{0,20}[a-z0-9]\Z")


def hello(name: str | None = NAME) -> bytes:
    """What OpenSSL says first when it dials the name."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


HELLO = hello()


def in_records(data: bytes, size: int) -> bytes:
    """The same handshake message in records of at most so many bytes."""
    message = data[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def outcome(data: bytes) -> str | None:
    try:
        return server_name(data)
    except NotAClientHello:
        return "refused"


@given(LABELS, LABELS)
def test_name_that_was_dialled_is_read(label: str, crew: str) -> None:
    name = f"{label}.crew-{crew}.svc"
    assert server_name(hello(name)) == name


def test_name_is_read_in_lower_case() -> None:
    assert server_name(HELLO.replace(NAME.encode(), NAME.upper().encode())) == NAME


@given(st.integers(1, 300))
def test_message_in_several_records_is_read(size: int) -> None:
    assert server_name(in_records(HELLO, size)) == NAME


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_every_beginning_asks_for_more(size: int) -> None:
    whole = in_records(HELLO, size)
    assert [server_name(whole[:end]) for end in range(len(whole))] == [None] * len(whole)


def test_hello_without_a_name_is_refused() -> None:
    with pytest.raises(NotAClientHello):
        server_name(hello(None))


@given(st.binary(max_size=600))
def test_garbage_is_refused_or_incomplete(data: bytes) -> None:
    assert outcome(data) in (None, "refused")


@given(st.binary(max_size=600))
def test_garbage_in_a_handshake_record_is_refused_or_incomplete(data: bytes) -> None:
    body = b"\x01" + len(data).to_bytes(3, "big") + data
    assert outcome(b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body) in (None, "refused")


@given(st.integers(0, len(HELLO) - 1), st.integers(1, 255))
def test_one_changed_byte_never_crashes(at: int, flip: int) -> None:
    changed = bytearray(HELLO)
    changed[at] ^= flip
    outcome(bytes(changed))


@given(st.integers(0, len(HELLO)), st.binary(max_size=40), st.integers(0, 40))
def test_spliced_input_never_crashes(at: int, inserted: bytes, dropped: int) -> None:
    outcome(HELLO[:at] + inserted + HELLO[at + dropped :])


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x02\x01\x00\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x01\x02",
        b"\x16\x03\x01\x40\x00\x01" + (HELLO_MAX_BYTES + 1).to_bytes(3, "big"),
        HELLO.replace(NAME.encode(), NAME.replace(".", "/").encode()),
        HELLO.replace(NAME.encode(), NAME.replace(".", "\0").encode()),
    ],
)
def test_what_is_no_hello_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(NotAClientHello):
        server_name(data)


def test_what_follows_the_message_is_not_judged() -> None:
    assert server_name(HELLO + b"\x16\x03\x01\x00\x01\x00") == NAME
