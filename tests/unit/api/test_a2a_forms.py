"""A2A's messages become tasks of ours and come back: by one table, the same message the same request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, status_pb2

from factory_server.api.a2a import checks, forms
from factory_server.core.errors import Invalid
from factory_server.core.model import TaskRow
from hyperfactory.v1 import agent_service_pb2
from lf.a2a.v1 import a2a_pb2 as pb

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Agent:
    """What of an agent's row a task needs."""

    id, crew = "a-1", "c-1"


def message(*parts: pb.Part, **more: Any) -> pb.SendMessageRequest:
    said = {"message_id": "m", "role": pb.ROLE_USER} | more
    return pb.SendMessageRequest(message=pb.Message(parts=parts, **said))


def data(value: dict[str, Any]) -> pb.Part:
    part = pb.Part()
    part.data.struct_value.update(value)
    return part


def row(body: Struct, phase: str = "ASSIGNED", **result: Any) -> TaskRow:
    ended = NOW + timedelta(seconds=5) if phase != "ASSIGNED" else None
    packed = agent_service_pb2.TaskResult(**result).SerializeToString()
    return TaskRow("t-1", "c-1", "a-1", 1, phase, body.SerializeToString(), packed, "x", NOW, NOW, ended)


def test_text_and_objects_become_one_input_and_come_back_as_they_were():
    request = message(pb.Part(text="one"), data({"n": 1}), pb.Part(text="two"), data({"m": {"deep": [True]}}))
    asked = forms.task_request(Agent(), request)
    body = MessageToDict(asked.input)
    assert (body["text"], body["n"], body["m"]) == ("one\ntwo", 1, {"deep": [True]})
    assert (asked.agent, asked.crew) == ("a-1", "c-1")
    [said] = forms.task(row(asked.input)).history
    assert (said.message_id, said.role, said.parts[0].text) == ("m", pb.ROLE_USER, "one\ntwo")
    assert MessageToDict(said.parts[1].data) == {"n": 1, "m": {"deep": [True]}}


def test_the_same_message_is_the_same_request_and_another_is_not():
    first = forms.task_request(Agent(), message(pb.Part(text="x")))
    assert forms.task_request(Agent(), message(pb.Part(text="x"))) == first
    other = forms.task_request(Agent(), message(pb.Part(text="x"), message_id="n"))
    assert other.request_id != first.request_id


def sent(*parts: pb.Part, history: int = 0, **more: Any) -> pb.SendMessageRequest:
    request = message(*parts, **more)
    request.tenant, request.configuration.history_length = "a-1", history
    return request


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (sent(pb.Part(text="x"), message_id=""), ["message.message_id"]),
        (sent(pb.Part(text="x"), message_id="x" * 257), ["message.message_id"]),
        (sent(pb.Part(text="x"), context_id="x" * 257), ["message.context_id"]),
        (sent(pb.Part(text="x"), role=pb.ROLE_AGENT), ["message.role"]),
        (sent(), ["message.parts"]),
        (sent(*[pb.Part(text="x")] * 101), ["message.parts"]),
        (sent(pb.Part(text="x"), pb.Part()), ["message.parts[1]"]),
        (sent(pb.Part(text="x"), history=-1), ["configuration.history_length"]),
        (pb.SendMessageRequest(), ["tenant", "message.message_id", "message.role", "message.parts"]),
        (pb.GetTaskRequest(tenant="a", history_length=-1), ["history_length", "id"]),
        (pb.CancelTaskRequest(tenant="a" * 65), ["tenant", "id"]),
        (pb.SubscribeToTaskRequest(), ["tenant", "id"]),
        (pb.GetExtendedAgentCardRequest(), ["tenant"]),
        (pb.ListTasksRequest(tenant="a", page_size=0), ["page_size"]),
        (pb.ListTasksRequest(tenant="a", page_size=101, history_length=-1), ["history_length", "page_size"]),
        (pb.ListTasksRequest(tenant="a", status=99), ["status"]),
        (
            pb.ListTasksRequest(tenant="a", status_timestamp_after=Timestamp(nanos=-1)),
            ["status_timestamp_after"],
        ),
    ],
)
def test_each_field_that_is_wrong_is_named(request_, fields):
    with pytest.raises(Invalid) as refused:
        checks.require(request_, "do it")
    assert [v.field for v in refused.value.violations] == fields


def test_what_is_right_passes():
    checks.require(sent(pb.Part(text="x"), data({"n": 1}), context_id="c"), "do it")
    checks.require(pb.ListTasksRequest(tenant="a"), "do it")


@pytest.mark.parametrize(
    ("phase", "result", "state"),
    [
        ("ASSIGNED", {}, pb.TASK_STATE_WORKING),
        ("COMPLETED", {}, pb.TASK_STATE_COMPLETED),
        ("FAILED", {"status": status_pb2.Status(code=code_pb2.UNKNOWN, message="why")}, pb.TASK_STATE_FAILED),
        ("FAILED", {"status": status_pb2.Status(code=code_pb2.CANCELLED)}, pb.TASK_STATE_CANCELED),
    ],
)
def test_each_phase_has_its_state(phase, result, state):
    made = forms.task(row(Struct(), phase, **result))
    assert made.status.state == state
    assert made.context_id == "t-1"
    assert bool(made.artifacts) == (phase == "COMPLETED")
    assert bool(made.status.message.parts) == (phase == "FAILED")


def test_an_answer_in_words_is_words_first():
    output = Struct()
    output.update({"text": "done", "n": 1})
    [artifact] = forms.task(row(Struct(), "COMPLETED", output=output)).artifacts
    assert artifact.parts[0].text == "done"
    assert MessageToDict(artifact.parts[1].data) == {"text": "done", "n": 1}


@pytest.mark.parametrize(("length", "shown"), [(None, 1), (0, 0), (5, 1)])
def test_no_more_history_than_was_asked_for(length, shown):
    assert len(forms.task(row(Struct()), history=length).history) == shown


@pytest.mark.parametrize(
    "part",
    [
        pb.Part(raw=b"x"),
        pb.Part(url="https://x/"),
        pb.Part(),
        pb.Part(text="x", media_type="image/png"),
        pb.Part(data=Value(number_value=1)),
        pb.Part(data=Value(struct_value=Struct()), media_type="text/csv"),
    ],
)
def test_what_a_task_cannot_take_is_seen(part):
    assert not checks.readable(message(pb.Part(text="x"), part).message)


def test_what_a_task_can_take_is_seen():
    parts = [
        pb.Part(text="x", media_type="Text/Markdown; charset=utf-8"),
        pb.Part(data=Value(struct_value=Struct()), media_type="application/ld+json"),
    ]
    assert checks.readable(message(*parts).message)


@pytest.mark.parametrize(
    ("accepted", "welcome"),
    [
        ([], True),
        (["image/png", "text/plain"], True),
        (["application/json; charset=utf-8"], True),
        (["*/*"], True),
        (["text/*"], True),
        (["image/png"], False),
    ],
)
def test_what_the_caller_takes_is_looked_at(accepted, welcome):
    assert checks.welcome(accepted) is welcome


def answer(text: str = "Hello dear") -> TaskRow:
    output = Struct()
    output.update({"text": text})
    usage = agent_service_pb2.ChatUsage(input_tokens=7, output_tokens=3)
    return row(Struct(), "COMPLETED", output=output, usage=usage, finish_reason="stop")


def test_a_models_answer_is_words_alone_and_says_what_it_cost():
    made = forms.task(answer())
    assert [part.text for part in made.artifacts[0].parts] == ["Hello dear"]
    cost = {"finishReason": "stop", "usage": {"inputTokens": 7, "outputTokens": 3}}
    assert MessageToDict(made.artifacts[0].metadata) == cost
    assert MessageToDict(made.metadata) == {"agent": "a-1", "crew": "c-1", **cost}


@pytest.mark.parametrize(
    ("said", "append", "rest"),
    [
        ("", False, "Hello dear"),
        ("Hello", True, " dear"),
        ("Hello dear", True, ""),
        ("Other", False, "Hello dear"),
    ],
)
def test_the_end_of_an_answer_is_what_was_not_said_yet(said, append, rest):
    last, end = forms.ended(answer(), said)
    update = last.artifact_update
    assert (update.append, update.last_chunk, update.artifact.parts[0].text) == (append, True, rest)
    assert MessageToDict(end.status_update.metadata)["finishReason"] == "stop"


def test_a_messages_metadata_comes_back_with_it():
    request = message(pb.Part(text="x"))
    request.message.metadata.update({"trace": "t-1"})
    [said] = forms.task(row(forms.task_request(Agent(), request).input)).history
    assert MessageToDict(said.metadata) == {"trace": "t-1"}
    assert [part.text for part in said.parts] == ["x"]
