"""A2AService: decode, call, encode. Messages become tasks of the agent that `tenant` names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from factory_server.api.a2a import cards, checks, forms
from factory_server.api.a2a.faults import SHOWN_CHARS, Fault, answered, refuse, streamed
from factory_server.api.caller import actor
from factory_server.core import model
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import NotFound
from factory_server.core.tools import Entry
from factory_server.services.parts import Parts
from factory_server.services.tasks import Tasks
from factory_server.services.tools import ToolRegistry
from lf.a2a.v1 import a2a_pb2 as pb
from lf.a2a.v1 import a2a_pb2_grpc
from wire.policy import current_caller

LISTED_MAX: Final = 500
"""Newest tasks of an agent that lists look through."""
PAGE_DEFAULT: Final = 50
TOOLS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class A2AUses:
    """The use cases behind A2A."""

    parts: Parts
    tasks: Tasks
    tools: ToolRegistry
    codec: CursorCodec
    gateway: str

    async def card(self, agent: str) -> pb.AgentCard:
        """The card of an agent, with the tools that the caller may use. NotFound."""
        row = await self.parts.store.get_agent(agent)
        profiles = await self.parts.store.get_profiles([row.profile])
        said = profiles[row.profile].description if row.profile in profiles else ""
        return cards.card(row, said, await self._tools(row), self.gateway)

    async def _tools(self, agent: model.AgentRow) -> Sequence[Entry]:
        page = model.Page(TOOLS_MAX, "")
        return list(await self.tools.list(agent.crew, agent.id, current_caller().scopes, page))[:TOOLS_MAX]


class A2AServicer(a2a_pb2_grpc.A2AServiceServicer):
    """What the specification says of A2AService."""

    def __init__(self, uses: A2AUses) -> None:
        self._u = uses

    @answered
    async def SendMessage(self, request: pb.SendMessageRequest, context: Any) -> pb.SendMessageResponse:
        row = await self._begin(request, context)
        if not request.configuration.return_immediately:
            row = await self._end_of(row)
        return pb.SendMessageResponse(task=forms.task(row, history=_history(request.configuration)))

    @streamed
    async def SendStreamingMessage(
        self, request: pb.SendMessageRequest, context: Any
    ) -> AsyncIterator[pb.StreamResponse]:
        row = await self._begin(request, context)
        yield pb.StreamResponse(task=forms.task(row, history=_history(request.configuration)))
        if row.ended_at is None:
            async for response in self._followed(row):
                yield response

    @streamed
    async def SubscribeToTask(
        self, request: pb.SubscribeToTaskRequest, context: Any
    ) -> AsyncIterator[pb.StreamResponse]:
        row = await self._task(request, context)
        if row.ended_at is not None:
            text = f"task '{row.id}' has ended: nothing follows"
            await refuse(context, Fault.UNSUPPORTED_OPERATION, text, taskId=row.id)
        yield pb.StreamResponse(task=forms.task(row))
        async for response in self._followed(row):
            yield response

    @answered
    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> pb.Task:
        return forms.task(await self._task(request, context), history=_history(request))

    @answered
    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        checks.require(request, "list tasks")
        agent = await self._u.parts.store.get_agent(request.tenant)
        size = request.page_size if request.HasField("page_size") else PAGE_DEFAULT
        since = request.status_timestamp_after.ToNanoseconds()
        scope = f"a2a|{agent.id}|{request.context_id}|{request.status}|{since}"
        artifacts = request.include_artifacts
        rows = await self._u.parts.store.agent_tasks(agent.id, LISTED_MAX, results=artifacts)
        found = forms.matching(rows, request)
        rest = self._after(scope, request.page_token, found)
        shown = rest[:size]
        return pb.ListTasksResponse(
            tasks=[forms.task(row, history=_history(request), artifacts=artifacts) for row in shown],
            next_page_token=self._token(scope, shown[-1]) if len(rest) > size else "",
            page_size=size,
            total_size=len(found),
        )

    def _token(self, scope: str, last: model.TaskRow) -> str:
        moment, ident = forms.place(last)
        return self._u.codec.encode(scope, f"{moment}|{ident}")

    def _after(self, scope: str, token: str, found: Sequence[model.TaskRow]) -> Sequence[model.TaskRow]:
        """What follows the last one shown, whatever came before it meanwhile."""
        if not token:
            return found
        moment, _, ident = self._u.codec.decode(scope, token, "page_token").partition("|")
        return [row for row in found if forms.place(row) < (int(moment), ident)]

    @answered
    async def CancelTask(self, request: pb.CancelTaskRequest, context: Any) -> pb.Task:
        row = await self._task(request, context)
        if row.ended_at is None:
            row = await self._u.tasks.cancel(row, actor())
        if forms.state_of(row) != pb.TASK_STATE_CANCELED:
            text = f"task '{row.id}' has ended: {row.phase}"
            await refuse(context, Fault.TASK_NOT_CANCELABLE, text, taskId=row.id)
        return forms.task(row)

    @answered
    async def GetExtendedAgentCard(
        self, request: pb.GetExtendedAgentCardRequest, context: Any
    ) -> pb.AgentCard:
        checks.require(request, "show the card")
        return await self._u.card(request.tenant)

    # Push notifications: the factory calls nobody, and so can be led nowhere by a caller's URL.

    @answered
    async def CreateTaskPushNotificationConfig(
        self, request: pb.TaskPushNotificationConfig, context: Any
    ) -> pb.TaskPushNotificationConfig:
        await _no_push(context)

    @answered
    async def GetTaskPushNotificationConfig(
        self, request: pb.GetTaskPushNotificationConfigRequest, context: Any
    ) -> pb.TaskPushNotificationConfig:
        await _no_push(context)

    @answered
    async def ListTaskPushNotificationConfigs(
        self, request: pb.ListTaskPushNotificationConfigsRequest, context: Any
    ) -> pb.ListTaskPushNotificationConfigsResponse:
        await _no_push(context)

    @answered
    async def DeleteTaskPushNotificationConfig(
        self, request: pb.DeleteTaskPushNotificationConfigRequest, context: Any
    ) -> Any:
        await _no_push(context)

    async def _begin(self, request: pb.SendMessageRequest, context: Any) -> model.TaskRow:
        """The task of a message: a new one, or the one that the same message began."""
        checks.require(request, "send the message")
        if request.configuration.HasField("task_push_notification_config"):
            await _no_push(context)
        agent = await self._u.parts.store.get_agent(request.tenant)
        if request.message.task_id:
            task = await self._task_of(agent.id, request.message.task_id, context)
            text = "a task takes one message: send a new one in its context"
            await refuse(context, Fault.UNSUPPORTED_OPERATION, text, taskId=task.id)
        if not checks.readable(request.message):
            text = "parts must be text, or data that is an object"
            await refuse(context, Fault.CONTENT_TYPE_NOT_SUPPORTED, text)
        if not checks.welcome(request.configuration.accepted_output_modes):
            text = f"agents give {' and '.join(checks.MODES)}, and accepted_output_modes has neither"
            await refuse(context, Fault.CONTENT_TYPE_NOT_SUPPORTED, text)
        wanted, scopes = forms.task_request(agent, request), current_caller().scopes
        row, _ = await self._u.tasks.start(wanted, actor(), scopes)
        return row

    async def _end_of(self, row: model.TaskRow) -> model.TaskRow:
        async with aclosing(self._u.tasks.updates(row)) as updates:
            async for update in updates:
                if isinstance(update, model.TaskRow):
                    row = update
        return row

    async def _followed(self, row: model.TaskRow) -> AsyncIterator[pb.StreamResponse]:
        number, said = 0, list[str]()
        async with aclosing(self._u.tasks.updates(row)) as updates:
            async for update in updates:
                if isinstance(update, model.TaskRow):
                    for response in forms.ended(update, "".join(said)):
                        yield response
                elif update.delta:
                    yield forms.chunk(row, update.delta, append=bool(said))
                    said.append(update.delta)
                else:
                    number += 1
                    yield forms.progressed(row, update, number)

    async def _task(self, request: Any, context: Any) -> model.TaskRow:
        checks.require(request, "find the task")
        return await self._task_of(request.tenant, request.id, context)

    async def _task_of(self, agent: str, ident: str, context: Any) -> model.TaskRow:
        """A task of the agent's; that of another is as unknown as one that never was."""
        try:
            row = await self._u.parts.store.get_task(ident)
        except NotFound:
            row = None
        if row is None or row.agent != agent:
            shown = ident[:SHOWN_CHARS]
            text = f"agent '{agent}' has no task '{shown}'"
            await refuse(context, Fault.TASK_NOT_FOUND, text, taskId=shown)
        return row


def _history(request: Any) -> int | None:
    """How many messages at most; None for all."""
    return int(request.history_length) if request.HasField("history_length") else None


async def _no_push(context: Any) -> NoReturn:
    await refuse(
        context, Fault.PUSH_NOTIFICATION_NOT_SUPPORTED, "push notifications are not supported: stream"
    )
