"""A2A's messages and tasks as ours, and back.

A task's input is what the message's data parts say (objects, merged), with its text as `text`; under `a2a` stand
the ids that A2A wants back.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from factory_server.core import model
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2
from lf.a2a.v1 import a2a_pb2 as pb

NAMESPACE: Final = uuid.UUID("6a1b3f1e-7c1d-5e0a-9a43-2b8f0c5d7e11")
OURS: Final = "a2a"
TEXT: Final = "text"
RESULT: Final = "result"
TEXT_TYPE: Final = "text/plain"
DATA_TYPE: Final = "application/json"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def task_request(agent: model.AgentRow, request: pb.SendMessageRequest) -> crew_service_pb2.RunTaskRequest:
    """The same message is the same request: its id makes the request's."""
    message = request.message
    body = Struct()
    for part in message.parts:
        if part.WhichOneof("content") == "data":
            body.MergeFrom(part.data.struct_value)
    if text := "\n".join(part.text for part in message.parts if part.WhichOneof("content") == "text"):
        body.fields[TEXT].string_value = text
    body.fields[OURS].struct_value.update(
        {
            "messageId": message.message_id,
            "contextId": message.context_id or _id(agent.id, message, "context"),
        }
    )
    if message.metadata.fields:
        body.fields[OURS].struct_value.fields["metadata"].struct_value.CopyFrom(message.metadata)
    return crew_service_pb2.RunTaskRequest(
        request_id=_id(agent.id, message, "task"), crew=agent.crew, agent=agent.id, input=body
    )


def _id(agent: str, message: pb.Message, what: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{agent}/{message.message_id}/{what}"))


def context_of(row: model.TaskRow) -> str:
    """The context that the task belongs to: its own, where nobody named one."""
    return _ids(Struct.FromString(row.input)).get("contextId", "") or row.id


def _ids(body: Struct) -> dict[str, str]:
    fields = body.fields[OURS].struct_value.fields if OURS in body.fields else {}
    return {name: fields[name].string_value for name in ("messageId", "contextId") if name in fields}


def state_of(row: model.TaskRow) -> pb.TaskState.ValueType:
    """The state of a task, in A2A's words."""
    if row.phase == "COMPLETED":
        return pb.TASK_STATE_COMPLETED
    if row.phase == "FAILED":
        code = agent_service_pb2.TaskResult.FromString(row.result).status.code
        return pb.TASK_STATE_CANCELED if code == code_pb2.CANCELLED else pb.TASK_STATE_FAILED
    return pb.TASK_STATE_WORKING


def task(row: model.TaskRow, *, history: int | None = None, artifacts: bool = True) -> pb.Task:
    """A task as it is; `history` bounds the messages shown, None does not."""
    shown = pb.Task(id=row.id, context_id=context_of(row), status=status(row))
    shown.metadata.update({"agent": row.agent, "crew": row.crew, **cost(row)})
    if history is None or history > 0:
        shown.history.append(_asked(row, shown.context_id))
    if artifacts and (made := artifact(row)) is not None:
        shown.artifacts.append(made)
    return shown


def status(row: model.TaskRow) -> pb.TaskStatus:
    """Its state, since when, and what went wrong."""
    found = pb.TaskStatus(state=state_of(row), timestamp=_stamp(row.ended_at or row.created_at))
    if row.phase == "FAILED":
        failure = agent_service_pb2.TaskResult.FromString(row.result).status
        found.message.CopyFrom(_said(row, failure.message or code_pb2.Code.Name(failure.code), "end"))
    return found


def cost(row: model.TaskRow) -> dict[str, Any]:
    """What a model's answer cost and why it ended; nothing where no model answered."""
    result = agent_service_pb2.TaskResult.FromString(row.result)
    if not result.finish_reason:
        return {}
    usage = {"inputTokens": result.usage.input_tokens, "outputTokens": result.usage.output_tokens}
    return {"finishReason": result.finish_reason, "usage": usage}


def artifact(row: model.TaskRow) -> pb.Artifact | None:
    """What came of it: a model's answer is its words, all else is data, with its words before it."""
    result = agent_service_pb2.TaskResult.FromString(row.result)
    if row.phase != "COMPLETED":
        return None
    text = result.output.fields[TEXT].string_value if TEXT in result.output.fields else ""
    made = pb.Artifact(artifact_id=RESULT, name=RESULT)
    made.metadata.update(cost(row))
    if text or result.finish_reason:
        made.parts.add(text=text, media_type=TEXT_TYPE)
    if not result.finish_reason:
        made.parts.add(data=Value(struct_value=result.output), media_type=DATA_TYPE)
    return made


def chunk(row: model.TaskRow, text: str, *, append: bool) -> pb.StreamResponse:
    """More of the answer."""
    update = pb.TaskArtifactUpdateEvent(task_id=row.id, context_id=context_of(row), append=append)
    update.artifact.artifact_id = update.artifact.name = RESULT
    update.artifact.parts.add(text=text, media_type=TEXT_TYPE)
    return pb.StreamResponse(artifact_update=update)


def progressed(row: model.TaskRow, step: agent_service_pb2.TaskProgress, number: int) -> pb.StreamResponse:
    """A step on the way."""
    update = pb.TaskStatusUpdateEvent(task_id=row.id, context_id=context_of(row))
    update.status.state = pb.TASK_STATE_WORKING
    update.status.message.CopyFrom(_said(row, step.message or "working", f"step-{number}"))
    update.metadata.update({"fraction": step.fraction})
    update.metadata.MergeFrom(step.detail)
    return pb.StreamResponse(status_update=update)


def ended(row: model.TaskRow, said: str = "") -> Iterator[pb.StreamResponse]:
    """What came of it, and how it ended; of an answer only what was not said yet, where that is how it goes on."""
    context = context_of(row)
    if (made := artifact(row)) is not None:
        append = bool(said) and made.parts[0].text.startswith(said)
        if append:
            made.parts[0].text = made.parts[0].text.removeprefix(said)
        yield pb.StreamResponse(
            artifact_update=pb.TaskArtifactUpdateEvent(
                task_id=row.id, context_id=context, artifact=made, append=append, last_chunk=True
            )
        )
    update = pb.TaskStatusUpdateEvent(task_id=row.id, context_id=context, status=status(row))
    update.metadata.update(cost(row))
    yield pb.StreamResponse(status_update=update)


def _asked(row: model.TaskRow, context: str) -> pb.Message:
    """The message that the task came from."""
    body = Struct.FromString(row.input)
    asked = pb.Message(
        message_id=_ids(body).get("messageId", "") or f"{row.id}-input",
        context_id=context,
        task_id=row.id,
        role=pb.ROLE_USER,
    )
    if OURS in body.fields and "metadata" in body.fields[OURS].struct_value.fields:
        asked.metadata.CopyFrom(body.fields[OURS].struct_value.fields["metadata"].struct_value)
    body.fields.pop(OURS, None)
    if TEXT in body.fields:
        asked.parts.add(text=body.fields[TEXT].string_value, media_type=TEXT_TYPE)
        del body.fields[TEXT]
    if body.fields or not asked.parts:
        asked.parts.add(data=Value(struct_value=body), media_type=DATA_TYPE)
    return asked


def _said(row: model.TaskRow, text: str, what: str) -> pb.Message:
    said = pb.Message(
        message_id=f"{row.id}-{what}", context_id=context_of(row), task_id=row.id, role=pb.ROLE_AGENT
    )
    said.parts.add(text=text, media_type=TEXT_TYPE)
    return said


def matching(rows: Sequence[model.TaskRow], request: pb.ListTasksRequest) -> list[model.TaskRow]:
    """Those that a list asks for, the last changed first."""
    since = (
        request.status_timestamp_after.ToNanoseconds() / 1e9
        if request.HasField("status_timestamp_after")
        else 0.0
    )
    found = [
        row
        for row in rows
        if (not request.context_id or context_of(row) == request.context_id)
        and (not request.status or state_of(row) == request.status)
        and changed_at(row).timestamp() >= since
    ]
    return sorted(found, key=place, reverse=True)


def place(row: model.TaskRow) -> tuple[int, str]:
    """Where a task stands in a list: by the microsecond of its last change, then by its id."""
    return (changed_at(row) - EPOCH) // timedelta(microseconds=1), row.id


def changed_at(row: model.TaskRow) -> datetime:
    """When its state last changed."""
    return row.ended_at or row.created_at


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
