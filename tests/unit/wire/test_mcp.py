"""MCP's messages and checks: what is read, what headers must say, and the framing of byte streams."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import Denied, Exhausted, Invalid, NotFound, Refused, Unavailable
from wire.mcp import checks, forms, messages
from wire.mcp.errors import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    PARSE_ERROR,
    UNSUPPORTED_VERSION,
    McpError,
    from_native,
)
from wire.mcp.names import NAME_RE, public_name
from wire.mcp.revisions import META_CLIENT_CAPABILITIES, META_VERSION, STATELESS

META = {META_VERSION: STATELESS, META_CLIENT_CAPABILITIES: {"roots": {}}}
HEADERS = {"mcp-protocol-version": STATELESS, "mcp-method": "tools/call", "mcp-name": "add"}


def asking(meta: Any = META, **params: Any) -> messages.Request:
    return messages.Request(1, "tools/call", {"name": "add", "_meta": meta, **params})


def code_of(headers: dict[str, str], request: messages.Request) -> int:
    with pytest.raises(McpError) as refused:
        checks.check_stateless(headers, request)
    assert refused.value.status == 400
    return refused.value.code


def test_a_right_request_tells_what_its_client_can() -> None:
    client = checks.check_stateless(HEADERS, asking())
    assert (client.capabilities, client.stateless) == ({"roots": {}}, True)


@pytest.mark.parametrize("header", HEADERS)
def test_headers_are_there_and_say_what_the_body_says(header: str) -> None:
    without = {name: value for name, value in HEADERS.items() if name != header}
    assert code_of(without, asking()) == HEADER_MISMATCH
    assert code_of({**HEADERS, header: "other"}, asking()) == HEADER_MISMATCH


@pytest.mark.parametrize("missing", META)
def test_a_request_says_its_revision_and_its_clients_capabilities(missing: str) -> None:
    meta = {key: value for key, value in META.items() if key != missing}
    assert code_of(HEADERS, asking(meta)) == INVALID_PARAMS


def test_an_unknown_revision_is_told_which_there_are() -> None:
    unknown = {**META, META_VERSION: "2999-01-01"}
    headers = {**HEADERS, "mcp-protocol-version": "2999-01-01"}
    assert code_of(headers, asking(unknown)) == UNSUPPORTED_VERSION
    assert code_of(headers, asking(None)) == UNSUPPORTED_VERSION


@given(st.text(max_size=40))
def test_what_a_header_holds_is_what_was_put_in(value: str) -> None:
    header = checks.encoded(value)
    header.encode("ascii")
    assert checks.decoded(header) == value


@pytest.mark.parametrize("header", ["=?base64?a?=", "=?base64?/w==?=", "\x01", "ü"])
def test_a_header_that_stands_for_nothing_is_refused(header: str) -> None:
    with pytest.raises(McpError):
        checks.decoded(header)


SCHEMA = {
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "deep": {"properties": {"count": {"type": "integer", "x-mcp-header": "Count"}}},
    }
}


@pytest.mark.parametrize(
    ("headers", "arguments", "fits"),
    [
        ({}, {}, True),
        ({"mcp-param-region": "eu"}, {"region": "eu"}, True),
        ({"mcp-param-count": "4.0"}, {"deep": {"count": 4}}, True),
        ({}, {"region": None}, True),
        ({}, {"region": "eu"}, False),
        ({"mcp-param-region": "us"}, {"region": "eu"}, False),
        ({"mcp-param-region": "eu"}, {}, False),
        ({"mcp-param-count": "four"}, {"deep": {"count": 4}}, False),
    ],
)
def test_mirrored_arguments_are_compared(headers: dict[str, str], arguments: Any, fits: bool) -> None:
    if fits:
        checks.check_params(headers, SCHEMA, arguments)
        return
    with pytest.raises(McpError) as refused:
        checks.check_params(headers, SCHEMA, arguments)
    assert refused.value.code == HEADER_MISMATCH


@given(st.lists(st.text(max_size=20), max_size=6), st.integers(1, 9))
def test_a_stream_of_lines_is_cut_where_messages_end(texts: list[str], size: int) -> None:
    sent = [messages.notification("x", {"text": text}) for text in texts]
    stream = b"".join(messages.line(message) for message in sent)
    lines = messages.Lines(10_000)
    found = [
        json.loads(line)
        for start in range(0, len(stream), size)
        for line in lines.feed(stream[start : start + size])
    ]
    assert found == sent


def test_a_line_that_does_not_end_is_an_error() -> None:
    lines = messages.Lines(10)
    with pytest.raises(McpError):
        list(lines.feed(b"x" * 11))


@given(st.text(alphabet="abc-", min_size=1, max_size=70), st.text(alphabet="abc_", min_size=1, max_size=70))
def test_public_names_are_fit_for_every_provider(agent: str, tool: str) -> None:
    name = public_name(agent, tool)
    assert NAME_RE.fullmatch(name)
    assert name == public_name(agent, tool)
    whole = f"{agent}__{tool}"
    stays = len(whole) <= 64 and not re.search(r"_[0-9a-f]{8}$", whole)
    assert name == whole if stays else re.fullmatch(r".*_[0-9a-f]{8}", name)


def test_long_names_stay_apart() -> None:
    assert public_name("a" * 63, "x1") != public_name("a" * 63, "x2")


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (Invalid("x"), -32602, 200),
        (NotFound("x"), -32602, 200),
        (Denied("x"), 7, 403),
        (Exhausted("x"), 8, 429),
        (Refused("x"), 9, 200),
        (Unavailable("x"), 14, 503),
    ],
)
def test_native_errors_have_words_of_their_own(error: Any, code: int, status: int) -> None:
    told = from_native(error)
    assert (told.code, told.status, told.data) == (code, status, {"reason": error.reason, "metadata": {}})


def test_a_client_is_asked_only_for_what_it_declared() -> None:
    requests = {"a": {"method": "elicitation/create"}, "b": {"method": "sampling/createMessage"}}
    forms.check_inputs(requests, {"elicitation": {}, "sampling": {}})
    with pytest.raises(McpError) as refused:
        forms.check_inputs(requests, {"elicitation": {}})
    assert refused.value.data == {"requiredCapabilities": {"sampling": {}}}


@pytest.mark.parametrize(
    "value", [b"1e400", b"-1e999", b"NaN", b"Infinity", b'"\\ud800"', b'"\\uDC00x"', b'{"\\uD800": 1}']
)
def test_what_other_readers_would_not_read_alike_is_no_json(value: bytes) -> None:
    with pytest.raises(McpError) as refused:
        messages.load(b'{"a":' + value + b"}")
    assert refused.value.code == PARSE_ERROR


@pytest.mark.parametrize("header", ["1_0", " 10", "0x0a", "1e1_", "\u0661\u0660", "inf", "nan"])
def test_a_mirrored_number_has_one_spelling_family(header: str) -> None:
    schema = {"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}}
    checks.check_params({"mcp-param-n": "10"}, schema, {"n": 10})
    with pytest.raises(McpError):
        checks.check_params({"mcp-param-n": header}, schema, {"n": 10})


def test_pairs_of_halves_are_characters() -> None:
    assert messages.load(b'["\\ud83d\\ude00", 1e308]') == ["\U0001f600", 1e308]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}])
def test_what_is_no_json_is_never_sent(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        messages.encode({"a": value})
