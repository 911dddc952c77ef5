"""Chat as OpenAI's clients speak it: the JSON of `/v1/chat/completions` to a ChatRequest, ChatResponses to theirs.

What would change the answer and cannot be had (`n` above 1, `logprobs`, penalties, images) is refused; what is
only a hint (`user`, `metadata`, `store`) is passed over. Tools that the agent has called itself are not shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import grpc

from hyperfactory.v1 import agent_service_pb2 as pb
from wire.errors import Exhausted, FactoryError, FieldViolation, Invalid, NotFound
from wire.json_fields import a_list, an_object, bad, flag, text
from wire.status import code_of

PATH: Final = "/v1/chat/completions"
MODELS_PATH: Final = "/v1/models"
DONE: Final = b"data: [DONE]\n\n"
ALIVE: Final = b": working\n\n"
"""A comment: tells clients and proxies that the stream lives while the agent calls its tools."""
MESSAGES_MAX: Final = 1000
ROLES: Final = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
UNSUPPORTED: Final = (
    "functions",
    "function_call",
    "audio",
    "prediction",
    "web_search_options",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
)
CHOICES: Final = ("none", "auto", "required")
FORMATS: Final = ("text", "json_object", "json_schema")
WHOLE: Final = {
    "max_tokens": ("max_output_tokens", 32),
    "max_completion_tokens": ("max_output_tokens", 32),
    "seed": ("seed", 64),
}
"""Whole numbers: what they are called in ours, and how wide they are in bits."""

_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error"),
    grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "server_error"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a completion."""

    model: str
    chat: pb.ChatRequest
    stream: bool = False
    usage: bool = False
    limit: str = ""
    """What the client called the bound of the answer's tokens."""


def read(body: bytes) -> Wanted:
    """A request's body. `Invalid` names the field."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad("body", "must be JSON") from error
    if not isinstance(found, dict):
        raise bad("body", "must be a JSON object")
    _refuse_unsupported(found)
    chat = pb.ChatRequest(
        messages=[_message(item, f"messages[{i}]") for i, item in enumerate(a_list(found, "messages"))],
        tools=[_tool(item, f"tools[{i}]") for i, item in enumerate(_tools(found))],
    )
    if not 1 <= len(chat.messages) <= MESSAGES_MAX:
        raise bad("messages", f"must have 1 to {MESSAGES_MAX} items")
    _options(found, chat.options)
    _choice(found, chat)
    return Wanted(
        model=text(found, "model", ""),
        chat=chat,
        stream=flag(found, "stream"),
        usage=flag(an_object(found, "stream_options"), "include_usage"),
        limit=next(
            (name for name in ("max_completion_tokens", "max_tokens") if found.get(name) is not None), ""
        ),
    )


def _refuse_unsupported(found: Mapping[str, Any]) -> None:
    for name in UNSUPPORTED:
        if found.get(name):
            raise bad(name, "is not supported")
    if found.get("n") not in (None, 1):
        raise bad("n", "must be 1")
    if found.get("logprobs"):
        raise bad("logprobs", "is not supported")
    if found.get("modalities") not in (None, ["text"]):
        raise bad("modalities", "must be ['text']")


def _tools(found: Mapping[str, Any]) -> Sequence[Any]:
    return () if found.get("tool_choice") == "none" else a_list(found, "tools")


def _options(found: Mapping[str, Any], options: pb.ChatOptions) -> None:
    for name, target in (("temperature", "temperature"), ("top_p", "top_p")):
        if (number := found.get(name)) is not None:
            if not isinstance(number, int | float) or isinstance(number, bool):
                raise bad(name, "must be a number")
            setattr(options, target, number)
    for name, (target, bits) in WHOLE.items():
        if (whole := found.get(name)) is not None:
            bound = 2 ** (bits - 1)
            if not isinstance(whole, int) or isinstance(whole, bool) or not -bound <= whole < bound:
                raise bad(name, f"must be a whole number of at most {bits} bits")
            setattr(options, target, whole)
    _format(an_object(found, "response_format"), options)
    stop = found.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise bad("stop", "must be a string or a list of strings")
    options.stop.extend(stops)


def _format(wanted: Mapping[str, Any], options: pb.ChatOptions) -> None:
    kind = wanted.get("type", "text")
    if kind not in FORMATS:
        raise bad("response_format.type", f"must be one of {', '.join(FORMATS)}")
    if kind == "text":
        return
    schema = an_object(wanted, "json_schema")
    if kind == "json_schema" and not (
        text(schema, "name", "response_format.json_schema") and schema.get("schema")
    ):
        raise bad("response_format.json_schema", "must have a name and a schema")
    try:
        options.response_format.update(wanted)
    except (ValueError, TypeError) as error:
        raise bad("response_format", "must be JSON") from error


def _choice(found: Mapping[str, Any], chat: pb.ChatRequest) -> None:
    """What the model must do first; `none` has taken the caller's tools away already."""
    choice = found.get("tool_choice")
    if choice in (None, "auto", "none"):
        return
    if isinstance(choice, dict) and choice.get("type") == "function":
        choice = an_object(choice, "function").get("name")
        known = choice in {tool.name for tool in chat.tools}
    else:
        known = choice == "required"
    if not known:
        raise bad("tool_choice", f"must be one of {', '.join(CHOICES)}, or name a function of tools")
    chat.options.tool_choice = str(choice)


def named(wrong: Sequence[FieldViolation], wanted: Wanted) -> list[FieldViolation]:
    """What the contract's checks found, by the fields that the client wrote."""
    theirs = {"options.max_output_tokens": wanted.limit} if wanted.limit else {}
    return [
        replace(violation, field=theirs.get(violation.field, violation.field).removeprefix("options."))
        for violation in wrong
    ]


def _message(item: Any, path: str) -> pb.ChatMessage:
    if not isinstance(item, dict):
        raise bad(path, "must be an object")
    role = ROLES.get(str(item.get("role")))
    if role is None:
        raise bad(f"{path}.role", f"must be one of {', '.join(ROLES)}")
    return pb.ChatMessage(
        role=role,
        content=_content(item.get("content"), f"{path}.content"),
        tool_calls=[
            _call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(a_list(item, "tool_calls", path))
        ],
        tool_call_id=text(item, "tool_call_id", path),
    )


def _content(content: Any, path: str) -> str:
    """A text, or parts that are texts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise bad(path, "must be a string or a list of parts")
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise bad(f"{path}[{i}]", "must be a part of type 'text'")
        texts.append(part["text"])
    return "".join(texts)


def _call(item: Any, path: str) -> pb.ToolCall:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict):
        raise bad(path, "must be a call of a function")
    call = pb.ToolCall(id=text(item, "id", path), name=text(function, "name", path))
    try:
        arguments = json.loads(function.get("arguments") or "{}")
        call.arguments.update(arguments)
    except (ValueError, TypeError, AttributeError) as error:
        raise bad(f"{path}.function.arguments", "must be a JSON object in a string") from error
    return call


def _tool(item: Any, path: str) -> pb.Tool:
    function = item.get("function") if isinstance(item, dict) and item.get("type") == "function" else None
    if not isinstance(function, dict) or not function.get("name"):
        raise bad(path, "must be a function with a name")
    tool = pb.Tool(name=text(function, "name", path), description=text(function, "description", path))
    try:
        tool.input_schema.update(function.get("parameters") or {})
    except (ValueError, TypeError, AttributeError) as error:
        raise bad(f"{path}.function.parameters", "must be a JSON Schema") from error
    return tool


@dataclass(slots=True)
class Answer:
    """One completion on its way to a client: its id, and what of it has been said."""

    id: str
    created: int
    wanted: Wanted
    _text: list[str] = field(default_factory=list)
    _last: pb.ChatResponse = field(default_factory=pb.ChatResponse)

    def add(self, response: pb.ChatResponse) -> None:
        """Take a response in, for an answer in one piece."""
        self._text.append(response.delta)
        self._last = response

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text)}
        if calls := _calls(self._last):
            message |= {"tool_calls": calls, "content": message["content"] or None}
        choice = {"index": 0, "message": message, "finish_reason": self._last.finish_reason, "logprobs": None}
        return {**self._base("chat.completion"), "choices": [choice], "usage": _usage(self._last)}

    def start(self) -> bytes:
        """The first event."""
        return self._event({"role": "assistant", "content": ""})

    def events(self, response: pb.ChatResponse) -> Iterator[bytes]:
        """The events of a response."""
        if response.delta:
            yield self._event({"content": response.delta})
        if not response.finish_reason:
            if not response.delta:
                yield ALIVE
            return
        if calls := _calls(response):
            yield self._event({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
        yield self._event({}, response.finish_reason)
        if self.wanted.usage:
            last = {**self._base("chat.completion.chunk"), "choices": [], "usage": _usage(response)}
            yield sse(last)
        yield DONE

    def _event(self, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        usage = {"usage": None} if self.wanted.usage else {}
        return sse({**self._base("chat.completion.chunk"), "choices": [choice], **usage})

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.wanted.model}


def _calls(response: pb.ChatResponse) -> list[dict[str, Any]]:
    """What the caller shall carry out."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(_plain(call.arguments))},
        }
        for call in response.tool_calls
    ]


def _plain(value: Any) -> Any:
    """A Struct or one of its values as JSON writers take it; whole numbers without a fraction."""
    if hasattr(value, "fields"):
        return {name: _plain(item) for name, item in value.fields.items()}
    match value.WhichOneof("kind"):
        case "number_value":
            return int(value.number_value) if value.number_value.is_integer() else value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _plain(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None


def _usage(response: pb.ChatResponse) -> dict[str, int]:
    read_, written = response.usage.input_tokens, response.usage.output_tokens
    return {"prompt_tokens": read_, "completion_tokens": written, "total_tokens": read_ + written}


def sse(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def failure(error: FactoryError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error, as OpenAI's clients read them."""
    status, kind = _STATUSES.get(code_of(error), (500, "server_error"))
    violations = error.violations if isinstance(error, Invalid) else ()
    body = {
        "message": error.message,
        "type": kind,
        "param": violations[0].field if violations else "model" if isinstance(error, NotFound) else None,
        "code": error.reason,
    }
    headers = {}
    if isinstance(error, Exhausted):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return status, {"error": body}, headers


def model(ident: str, created: int, owner: str) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {"id": ident, "object": "model", "created": created, "owned_by": owner}
