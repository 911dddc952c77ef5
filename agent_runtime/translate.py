"""The runtime's own types to the contract's messages and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct

from agent_runtime import __version__
from agent_runtime.assumed import AssumedAgent
from agent_runtime.chat import Conversation
from agent_runtime.limits import REPORT_MAX_BYTES, RESULT_MAX_BYTES
from agent_runtime.memory import Blob
from agent_runtime.models import Offer, Options
from agent_runtime.profile import ChatPiece, ChatTurn, ToolUse
from agent_runtime.structs import sayable, to_dict, to_struct
from agent_runtime.tasks import Progress, Result
from agent_runtime.tools.registry import Outcome, Tool
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import types_pb2
from wire.errors import AgentCodeFailed, Exhausted, FactoryError
from wire.status import to_status
from wire.tokens import SCOPES

TOO_MANY_TOOLS = types_pb2.Condition(
    type="ToolsListed",
    status=types_pb2.CONDITION_STATUS_FALSE,
    reason="TooMany",
    message="the agent offers more tools than a report holds; some are not listed",
)


def description(agent: AssumedAgent, scopes: frozenset[str]) -> pb.AgentDescription:
    return pb.AgentDescription(
        agent=agent.facts.agent,
        generation=agent.facts.generation,
        profile=agent.facts.profile,
        tools=[tool(found) for found in agent.visible_tools(scopes)],
        runtime_version=__version__,
        running_tasks=len(agent.tasks),
    )


def tool(found: Tool) -> pb.Tool:
    return pb.Tool(
        name=found.name,
        description=found.description,
        input_schema=to_struct(found.input_schema),
        read_only=found.read_only,
        title=found.title,
        output_schema=None if found.output_schema is None else to_struct(found.output_schema),
        destructive=found.destructive,
        idempotent=found.idempotent,
        open_world=found.open_world,
        scope=found.scope,
    )


def report(agent: AssumedAgent) -> pb.AgentReport:
    """What the agent offers to whom it may concern: each caller's share is for the factory to cut. What its own
    scope does not reach nobody can call."""
    offered = agent.parts.context.capabilities
    said = pb.AgentReport(revision=offered.revision, conditions=offered.conditions())
    left_bytes = REPORT_MAX_BYTES
    for found in agent.visible_tools(SCOPES):
        shown = tool(found)
        left_bytes -= shown.ByteSize()
        if left_bytes < 0:
            said.conditions.append(TOO_MANY_TOOLS)
            break
        said.tools.append(shown)
    return said


def progress(step: Progress) -> pb.TaskProgress:
    detail = to_struct(step.detail)
    return pb.TaskProgress(fraction=step.fraction, message=step.message, detail=detail, delta=step.delta)


def task_update(update: Progress | Result) -> pb.AgentServiceRunTaskResponse:
    if isinstance(update, Progress):
        return pb.AgentServiceRunTaskResponse(progress=progress(update))
    return pb.AgentServiceRunTaskResponse(result=_task_result(update))


def _task_result(result: Result) -> pb.TaskResult:
    if result.error is not None:
        return pb.TaskResult(status=to_status(result.error))
    try:
        ended = pb.TaskResult(output=_bounded(result.output, "the task's output"))
    except FactoryError as error:
        return pb.TaskResult(status=to_status(error))
    if (last := result.answered) is not None:
        ended.finish_reason = last.finish_reason
        ended.usage.input_tokens, ended.usage.output_tokens = last.input_tokens, last.output_tokens
    return ended


def tool_update(update: Progress | Outcome) -> pb.CallToolResponse:
    if isinstance(update, Progress):
        return pb.CallToolResponse(progress=progress(update))
    if update.asks or update.state:
        update = Outcome(
            "the tool asks its caller for more, which can be answered by MCP only", is_error=True
        )
    said = sayable(update.text or "\n".join(_text(block) for block in update.content))
    _check_size(len(said.encode()), "the tool's result")
    return pb.CallToolResponse(
        result=pb.ToolResult(
            text=said,
            structured=_bounded(update.structured, "the tool's result"),
            is_error=update.is_error,
        )
    )


def _text(block: Mapping[str, Any]) -> str:
    """A block of MCP as text: what is none is named by its kind."""
    inner = block.get("resource", block)
    return str(inner["text"]) if "text" in inner else f"[{block.get('type')} {inner.get('mimeType', '')}]"


def _bounded(plain: Any, what: str) -> Struct:
    """A struct that the other side will accept; what the agent's code made wrong is named as such."""
    if not isinstance(plain, Mapping):
        raise AgentCodeFailed(f"{what} is a {type(plain).__name__}, not a mapping")
    try:
        struct = to_struct(plain)
    except FactoryError as error:
        raise AgentCodeFailed(f"{what} is no JSON: {error}") from error
    _check_size(struct.ByteSize(), what)
    return struct


def _check_size(size_bytes: int, what: str) -> None:
    if size_bytes > RESULT_MAX_BYTES:
        raise Exhausted(f"{what} has more than {RESULT_MAX_BYTES} bytes", quota="result bytes")


def turn(message: pb.ChatMessage) -> ChatTurn:
    uses = [ToolUse(call.id, call.name, to_dict(call.arguments)) for call in message.tool_calls]
    return ChatTurn(message.role, message.content, uses, message.tool_call_id)


def conversation(request: pb.ChatRequest) -> Conversation:
    wanted = request.options
    options = Options(
        temperature=wanted.temperature if wanted.HasField("temperature") else None,
        top_p=wanted.top_p if wanted.HasField("top_p") else None,
        max_output_tokens=wanted.max_output_tokens if wanted.HasField("max_output_tokens") else None,
        stop=tuple(wanted.stop),
        seed=wanted.seed if wanted.HasField("seed") else None,
        tool_choice=wanted.tool_choice,
        response_format=to_dict(wanted.response_format) if wanted.HasField("response_format") else None,
    )
    tools = [Offer(each.name, each.description, to_dict(each.input_schema)) for each in request.tools]
    return Conversation([turn(message) for message in request.messages], tools, options)


def chat_response(piece: ChatPiece) -> pb.ChatResponse:
    calls = [
        pb.ToolCall(id=use.id, name=use.name, arguments=to_struct(use.arguments)) for use in piece.tool_uses
    ]
    response = pb.ChatResponse(delta=piece.delta, tool_calls=calls, finish_reason=piece.finish_reason)
    if piece.finish_reason:
        response.usage.input_tokens = piece.input_tokens
        response.usage.output_tokens = piece.output_tokens
    return response


def state(blob: Blob) -> pb.StateBlob:
    return pb.StateBlob(data=blob.data, sha256=blob.sha256)


def blob(message: pb.StateBlob) -> Blob:
    return Blob(message.data, message.sha256)
