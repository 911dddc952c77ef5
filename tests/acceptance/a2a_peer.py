"""The official a2a-sdk client against a factory: a process of its own, since its descriptors are named as ours.

Says what it saw as one JSON document. Arguments: client.json, and the cards of a quick agent, of a slow one, and
of one that has a model.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
from a2a.client.client import ClientConfig
from a2a.client.client_factory import ClientFactory
from a2a.server.tasks.task_manager import append_artifact_to_task
from a2a.types import a2a_pb2 as pb
from a2a.utils import errors
from google.protobuf.json_format import MessageToDict, Parse


def channel_factory(told: dict[str, str]) -> Any:
    ca, key, cert = (Path(told[name]).read_bytes() for name in ("ca", "key", "cert"))
    token = grpc.access_token_call_credentials(Path(told["token"]).read_text().strip())
    credentials = grpc.composite_channel_credentials(grpc.ssl_channel_credentials(ca, key, cert), token)
    options = [
        ("grpc.ssl_target_name_override", told["authority"]),
        ("grpc.default_authority", told["authority"]),
    ]

    def make(url: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(url.removeprefix("https://"), credentials, options)

    return make


def message(ident: str, *parts: pb.Part, **more: Any) -> pb.SendMessageRequest:
    said = pb.Message(message_id=ident, role=pb.ROLE_USER, parts=parts, **more)
    return pb.SendMessageRequest(message=said)


def data(value: dict[str, Any]) -> pb.Part:
    part = pb.Part()
    part.data.struct_value.update(value)
    return part


async def refusal(work: Any) -> str:
    try:
        await work
    except errors.A2AError as error:
        return type(error).__name__
    except Exception as error:
        return f"unknown: {type(error).__name__}: {error}"
    return "none"


async def wrong_fields(work: Any) -> list[str]:
    try:
        await work
    except errors.InvalidParamsError as error:
        return [found["field"] for found in (error.data or {})["errors"]]
    return []


async def talk(client: Any, waiting: Any) -> dict[str, Any]:
    """Three messages of one context: the script has answers for two."""
    seen: dict[str, Any] = {"kinds": [], "states": []}
    task = pb.Task()
    async for response in client.send_message(message("t-1", pb.Part(text="I am Ada"), context_id="c-1")):
        kind = response.WhichOneof("payload")
        seen["kinds"].append(kind)
        if kind == "task":
            task = response.task
        elif kind == "artifact_update":
            append_artifact_to_task(task, response.artifact_update)
            last = response.artifact_update
        else:
            seen["states"].append(pb.TaskState.Name(response.status_update.status.state))
    seen["folded"] = "".join(part.text for part in task.artifacts[0].parts)
    seen["last_chunk"] = last.last_chunk
    second = await first(waiting.send_message(message("t-2", pb.Part(text="Who am I?"), context_id="c-1")))
    seen["second"] = MessageToDict(second.task)
    third = await first(waiting.send_message(message("t-3", pb.Part(text="Again?"), context_id="c-1")))
    seen["third"] = MessageToDict(third.task.status)
    failed = await waiting.list_tasks(pb.ListTasksRequest(status=pb.TASK_STATE_FAILED, history_length=0))
    seen["failed"] = [task.id for task in failed.tasks] == [third.task.id]
    return seen


async def refused(waiting: Any, streaming: Any, ended: str, begun: str) -> dict[str, str]:
    """What an agent does not do, as the client's exceptions."""
    unwelcome = message("m-6", pb.Part(text="x"))
    unwelcome.configuration.accepted_output_modes.append("image/png")
    config = pb.TaskPushNotificationConfig(task_id=begun, url="https://example.com/")
    return {
        "push": await refusal(waiting.create_task_push_notification_config(config)),
        "unknown": await refusal(waiting.get_task(pb.GetTaskRequest(id="t-none"))),
        "ended": await refusal(waiting.cancel_task(pb.CancelTaskRequest(id=ended))),
        "subscribe": await refusal(first(streaming.subscribe(pb.SubscribeToTaskRequest(id=ended)))),
        "raw": await refusal(first(waiting.send_message(message("m-4", pb.Part(raw=b"x"))))),
        "continued": await refusal(
            first(waiting.send_message(message("m-5", pb.Part(text="x"), task_id=ended)))
        ),
        "modes": await refusal(first(waiting.send_message(unwelcome))),
        "config": await refusal(
            waiting.get_task_push_notification_config(
                pb.GetTaskPushNotificationConfigRequest(task_id=begun, id="c")
            )
        ),
    }


async def wrong(waiting: Any, ended: str, token: str) -> list[list[str]]:
    """The fields of bad requests, as the client is told."""
    return [
        await wrong_fields(first(waiting.send_message(message("", pb.Part())))),
        await wrong_fields(waiting.list_tasks(pb.ListTasksRequest(page_size=101, history_length=-1))),
        await wrong_fields(waiting.list_tasks(pb.ListTasksRequest(page_token="x"))),
        await wrong_fields(waiting.list_tasks(pb.ListTasksRequest(page_token=token, context_id="talk-1"))),
        await wrong_fields(waiting.get_task(pb.GetTaskRequest(id=ended, history_length=-1))),
    ]


async def first(responses: Any) -> Any:
    async for response in responses:
        return response
    return None


async def main() -> dict[str, Any]:
    told = json.loads(Path(sys.argv[1]).read_text())
    card = Parse(Path(sys.argv[2]).read_text(), pb.AgentCard())
    base = {"grpc_channel_factory": channel_factory(told), "supported_protocol_bindings": ["GRPC"]}
    streaming = ClientFactory(ClientConfig(streaming=True, **base)).create(card)
    waiting = ClientFactory(ClientConfig(streaming=False, **base)).create(card)
    slow_card = Parse(Path(sys.argv[3]).read_text(), pb.AgentCard())
    slow = ClientFactory(ClientConfig(streaming=False, polling=True, **base)).create(slow_card)
    watching = ClientFactory(ClientConfig(streaming=True, **base)).create(slow_card)
    talker_card = Parse(Path(sys.argv[4]).read_text(), pb.AgentCard())
    talker = ClientFactory(ClientConfig(streaming=True, **base)).create(talker_card)
    asker = ClientFactory(ClientConfig(streaming=False, **base)).create(talker_card)
    seen: dict[str, Any] = {}

    hello = message("m-1", pb.Part(text="hello"), data({"n": 7}), context_id="talk-1")
    answer = await first(waiting.send_message(hello))
    seen["sent"] = MessageToDict(answer.task)
    again = await first(waiting.send_message(hello))
    seen["same"] = again.task.id == answer.task.id
    seen["got"] = MessageToDict(
        await waiting.get_task(pb.GetTaskRequest(id=answer.task.id, history_length=0))
    )

    stream = [MessageToDict(r) async for r in streaming.send_message(message("m-2", pb.Part(text="stream")))]
    seen["streamed"] = stream

    long = message("m-3", data({"mission": "m", "start": 0, "stop": 9, "parts": 1, "claimed": 4}))
    begun = (await first(slow.send_message(long))).task
    seen["begun"] = pb.TaskState.Name(begun.status.state)
    followed = aiter(watching.subscribe(pb.SubscribeToTaskRequest(id=begun.id)))
    seen["subscribed"] = (await anext(followed)).task.id == begun.id
    cancelled = await slow.cancel_task(pb.CancelTaskRequest(id=begun.id))
    seen["cancelled"] = pb.TaskState.Name(cancelled.status.state)
    rest = [response async for response in followed]
    seen["last"] = pb.TaskState.Name(rest[-1].status_update.status.state)

    listed = await waiting.list_tasks(pb.ListTasksRequest(page_size=1))
    more = await waiting.list_tasks(pb.ListTasksRequest(page_size=1, page_token=listed.next_page_token))
    seen["listed"] = [task.id for task in (*listed.tasks, *more.tasks)]
    seen["total"] = listed.total_size
    seen["of_context"] = [
        task.id for task in (await waiting.list_tasks(pb.ListTasksRequest(context_id="talk-1"))).tasks
    ]
    newer = pb.ListTasksRequest(include_artifacts=True)
    newer.status_timestamp_after.CopyFrom(answer.task.status.timestamp)
    newer.status_timestamp_after.FromNanoseconds(newer.status_timestamp_after.ToNanoseconds() + 1000)
    seen["newer"] = [len(task.artifacts) for task in (await waiting.list_tasks(newer)).tasks]
    seen["talk"] = await talk(talker, asker)
    extended = await waiting.get_extended_agent_card(pb.GetExtendedAgentCardRequest())
    seen["extended"] = extended.name
    seen["refused"] = await refused(waiting, streaming, answer.task.id, begun.id)
    seen["wrong"] = await wrong(waiting, answer.task.id, listed.next_page_token)
    for client in (streaming, waiting, slow, watching, talker, asker):
        await client.close()
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main())))
