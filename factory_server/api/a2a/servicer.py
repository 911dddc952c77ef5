"""A2AService: decode, call, encode. Messages become tasks of the agent that `tenant` names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from factory_server.api.a2a import cards, forms
from factory_server.api.a2a.faults import Fault, check_version, refuse
from factory_server.api.caller import actor
from factory_server.core import model
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import FieldViolation, Invalid, NotFound
from factory_server.core.tools import Entry
from factory_server.services.parts import Parts
from factory_server.services.tasks import Tasks
from factory_server.services.tools import ToolRegistry
from hyperfactory.v1 import agent_service_pb2
from lf.a2a.v1 import a2a_pb2 as pb
from lf.a2a.v1 import a2a_pb2_grpc
from wire.policy import current_caller

LISTED_MAX: Final = 500
"""Newest tasks of an agent that lists look through."""
PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 100
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

    async def SendMessage(self, request: pb.SendMessageRequest, context: Any) -> pb.SendMessageResponse:
        row = await self._begin(request, context)
        if not request.configuration.return_immediately:
            row = await self._end_of(row)
        return pb.SendMessageResponse(task=forms.task(row, history=_history(request.configuration)))

    async def SendStreamingMessage(
        self, request: pb.SendMessageRequest, context: Any
    ) -> AsyncIterator[pb.StreamResponse]:
        row = await self._begin(request, context)
        yield pb.StreamResponse(task=forms.task(row, history=_history(request.configuration)))
        async for response in self._followed(row):
            yield response

    async def SubscribeToTask(
        self, request: pb.SubscribeToTaskRequest, context: Any
    ) -> AsyncIterator[pb.StreamResponse]:
        row = await self._task(request, context)
        if row.ended_at is not None:
            await refuse(context, Fault.UNSUPPORTED_OPERATION, f"task '{row.id}' has ended: nothing follows")
        yield pb.StreamResponse(task=forms.task(row))
        async for response in self._followed(row):
            yield response

    async def GetTask(self, request: pb.GetTaskRequest, context: Any) -> pb.Task:
        return forms.task(await self._task(request, context), history=_history(request))

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        await check_version(context)
        agent = await self._u.parts.store.get_agent(_tenant(request))
        size = request.page_size if request.HasField("page_size") else PAGE_DEFAULT
        if not 1 <= size <= PAGE_MAX:
            text = f"must be 1 to {PAGE_MAX}"
            raise Invalid(f"page_size {text}", violations=[FieldViolation("page_size", text)])
        scope = f"a2a|{agent.id}|{request.context_id}|{request.status}"
        start = int(self._u.codec.decode(scope, request.page_token)) if request.page_token else 0
        artifacts = request.include_artifacts
        rows = await self._u.parts.store.agent_tasks(agent.id, LISTED_MAX, results=artifacts)
        found = forms.matching(rows, request)
        shown, more = found[start : start + size], len(found) > start + size
        return pb.ListTasksResponse(
            tasks=[forms.task(row, history=_history(request), artifacts=artifacts) for row in shown],
            next_page_token=self._u.codec.encode(scope, str(start + size)) if more else "",
            page_size=size,
            total_size=len(found),
        )

    async def CancelTask(self, request: pb.CancelTaskRequest, context: Any) -> pb.Task:
        row = await self._task(request, context)
        if row.ended_at is None:
            row = await self._u.tasks.cancel(row, actor())
        if forms.state_of(row) != pb.TASK_STATE_CANCELED:
            await refuse(context, Fault.TASK_NOT_CANCELABLE, f"task '{row.id}' has ended: {row.phase}")
        return forms.task(row)

    async def GetExtendedAgentCard(
        self, request: pb.GetExtendedAgentCardRequest, context: Any
    ) -> pb.AgentCard:
        await check_version(context)
        return await self._u.card(_tenant(request))

    # Push notifications: no agent's factory calls out.

    async def CreateTaskPushNotificationConfig(
        self, request: pb.TaskPushNotificationConfig, context: Any
    ) -> pb.TaskPushNotificationConfig:
        await _no_push(context)

    async def GetTaskPushNotificationConfig(
        self, request: pb.GetTaskPushNotificationConfigRequest, context: Any
    ) -> pb.TaskPushNotificationConfig:
        await _no_push(context)

    async def ListTaskPushNotificationConfigs(
        self, request: pb.ListTaskPushNotificationConfigsRequest, context: Any
    ) -> pb.ListTaskPushNotificationConfigsResponse:
        await _no_push(context)

    async def DeleteTaskPushNotificationConfig(
        self, request: pb.DeleteTaskPushNotificationConfigRequest, context: Any
    ) -> Any:
        await _no_push(context)

    async def _begin(self, request: pb.SendMessageRequest, context: Any) -> model.TaskRow:
        """The task of a message: a new one, or the one that the same message began."""
        await check_version(context)
        if request.configuration.HasField("task_push_notification_config"):
            await _no_push(context)
        agent = await self._u.parts.store.get_agent(_tenant(request))
        if request.message.task_id:
            await self._task_of(agent.id, request.message.task_id, context)
            await refuse(context, Fault.UNSUPPORTED_OPERATION, "a task takes one message: send a new one")
        if not forms.readable(request.message):
            await refuse(
                context, Fault.CONTENT_TYPE_NOT_SUPPORTED, "parts must be text, or data that is an object"
            )
        row, _ = await self._u.tasks.start(forms.task_request(agent, request), actor())
        return row

    async def _end_of(self, row: model.TaskRow) -> model.TaskRow:
        async with aclosing(self._u.tasks.updates(row)) as updates:
            async for update in updates:
                if isinstance(update, model.TaskRow):
                    row = update
        return row

    async def _followed(self, row: model.TaskRow) -> AsyncIterator[pb.StreamResponse]:
        number = 0
        async with aclosing(self._u.tasks.updates(row)) as updates:
            async for update in updates:
                if isinstance(update, agent_service_pb2.TaskProgress):
                    number += 1
                    yield forms.progressed(row, update, number)
                    continue
                for response in forms.ended(update):
                    yield response

    async def _task(self, request: Any, context: Any) -> model.TaskRow:
        await check_version(context)
        return await self._task_of(_tenant(request), request.id, context)

    async def _task_of(self, agent: str, ident: str, context: Any) -> model.TaskRow:
        """A task of the agent's; that of another is as unknown as one that never was."""
        try:
            row = await self._u.parts.store.get_task(ident)
        except NotFound:
            row = None
        if row is None or row.agent != agent:
            await refuse(context, Fault.TASK_NOT_FOUND, f"agent '{agent}' has no task '{ident[:64]}'")
        return row


def _tenant(request: Any) -> str:
    if not request.tenant:
        violation = FieldViolation("tenant", "is required: the agent's id")
        raise Invalid("which agent? tenant is required", violations=[violation])
    tenant: str = request.tenant
    return tenant


def _history(request: Any) -> int | None:
    """How many messages at most; None for all."""
    return int(request.history_length) if request.HasField("history_length") else None


async def _no_push(context: Any) -> NoReturn:
    await refuse(
        context, Fault.PUSH_NOTIFICATION_NOT_SUPPORTED, "push notifications are not supported: stream"
    )
