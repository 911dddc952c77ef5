"""Questions on a call's stream: renamed wherever the bytes are cut, bounded, and over with their call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from factory_server.api.http import mcp_questions, mcp_sessions
from factory_server.api.http.mcp_questions import Questions
from factory_server.api.http.mcp_sessions import AgentSession, Session
from factory_server.core.errors import Exhausted
from tests.unit.services.service_parts import agent
from wire.policy import Caller, Principal

WHO = Caller(Principal.OPERATOR, "spiffe://hyperfactory.local/operator/ada", "ada")


def session() -> Session:
    return Session("s", WHO.spiffe, "c1", "2025-11-25", {}, {})


def at() -> AgentSession:
    return AgentSession(agent(), WHO, "x")


def data(message: Any, end: bytes = b"\n") -> bytes:
    return b"event: message" + end + b"data: " + json.dumps(message).encode() + end + end


def messages_in(stream: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: ")]


QUESTION = {"jsonrpc": "2.0", "id": 1, "method": "roots/list", "params": {"a": "ä\n\n"}}
PROGRESS = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}
RESULT = {"jsonrpc": "2.0", "id": 1, "result": {"says": '"method" is no question'}}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_only_questions_are_renamed_wherever_the_stream_is_cut(end: bytes):
    stream = b": hello" + end + end + data(PROGRESS, end) + data(QUESTION, end) + data(RESULT, end)
    for cut in range(len(stream) + 1):
        client, where = session(), at()
        questions = Questions(client, where)
        out = questions.change(stream[:cut]) if cut else b""
        out += (questions.change(stream[cut:]) if stream[cut:] else b"") + questions.change(b"")
        first, second, third = messages_in(out)
        assert (first, third) == (PROGRESS, RESULT)
        assert second == {**QUESTION, "id": second["id"]}
        found = client.answered(second["id"])
        assert found is not None
        assert (found.at, found.id) == (where, 1)


def test_an_event_in_several_lines_is_one_message():
    lines = json.dumps(QUESTION, indent=1).splitlines()
    stream = "".join(f"data:{line}\n" for line in lines).encode() + b"\n"
    [found] = messages_in(Questions(session(), at()).change(stream))
    assert found["method"] == "roots/list"
    assert found["id"] != 1


def test_a_question_that_the_agent_takes_back_is_taken_back_by_our_name():
    client = session()
    questions = Questions(client, at())
    [asked] = messages_in(questions.change(data(QUESTION)))
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    [told] = messages_in(questions.change(data(cancel)))
    assert told["params"]["requestId"] == asked["id"]
    assert client.answered(asked["id"]) is None
    assert messages_in(questions.change(data(cancel))) == [cancel]


def test_what_is_too_long_to_be_a_question_passes_as_it_comes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcp_questions, "EVENT_BYTES_MAX", 200)
    long = data({**RESULT, "result": {"text": "a" * 500}})
    stream = long + data(QUESTION)
    for step in (1, 2, 7, 64, len(stream)):
        questions = Questions(session(), at())
        out, held = b"", 0
        for begin in range(0, len(stream), step):
            out += questions.change(stream[begin : begin + step])
            held = max(held, len(questions._buffer))
        out += questions.change(b"")
        assert out.startswith(long)
        assert messages_in(out)[1]["id"] != 1
        assert held <= 200 + step


def test_questions_are_bounded_and_over_with_their_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcp_sessions, "QUESTIONS_MAX", 2)
    client, where = session(), at()
    one, two = Questions(client, where), Questions(client, where)
    [first] = messages_in(one.change(data(QUESTION)))
    two.change(data(QUESTION))
    with pytest.raises(Exhausted):
        two.change(data(QUESTION))
    two.end()
    one.change(data(QUESTION))
    assert client.answered(first["id"]) is not None
    one.end()
    assert not client._questions
