"""A2A's messages become tasks of ours and come back: by one table, the same message the same request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.rpc import code_pb2, status_pb2

from factory_server.api.a2a import forms
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


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (message(pb.Part(text="x"), message_id=""), "message.message_id"),
        (message(pb.Part(text="x"), role=pb.ROLE_AGENT), "message.role"),
        (message(), "message.parts"),
    ],
)
def test_what_is_missing_is_named(request_, field):
    with pytest.raises(Invalid) as refused:
        forms.task_request(Agent(), request_)
    assert [v.field for v in refused.value.violations] == [field]


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


@pytest.mark.parametrize("part", [pb.Part(raw=b"x"), pb.Part(url="https://x/"), pb.Part()])
def test_what_a_task_cannot_take_is_seen(part):
    assert not forms.readable(message(pb.Part(text="x"), part).message)
