"""A conversation as an OpenAI-compatible endpoint reads it, and its answer's events as pieces of ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime.models import Prompt
from agent_runtime.openai.http import LinkBroken
from agent_runtime.profile import ChatPiece, ChatTurn, ToolUse

TOOL_USES_MAX: Final = 32
ARGUMENTS_MAX_CHARS: Final = 256 * 1024
ANSWER_MAX_CHARS: Final = 1024 * 1024
DONE: Final = "[DONE]"
FINISHES: Final = frozenset({"stop", "length", "tool_calls", "content_filter"})


def chat_body(model: str, prompt: Prompt) -> dict[str, Any]:
    """The request for one streamed answer."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(turn) for turn in prompt.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    options = prompt.options
    wanted = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_output_tokens,
        "stop": list(options.stop) or None,
        "seed": options.seed,
        "response_format": options.response_format,
    }
    body |= {name: value for name, value in wanted.items() if value is not None}
    if prompt.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.input_schema) or {"type": "object", "properties": {}},
                },
            }
            for tool in prompt.tools
        ]
        if choice := "none" if prompt.must_answer else options.tool_choice:
            named = choice not in ("none", "auto", "required")
            body["tool_choice"] = {"type": "function", "function": {"name": choice}} if named else choice
    return body


def _message(turn: ChatTurn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    if turn.tool_uses:
        message["content"] = turn.content or None
        message["tool_calls"] = [
            {
                "id": use.id,
                "type": "function",
                "function": {"name": use.name, "arguments": use.raw or json.dumps(dict(use.arguments))},
            }
            for use in turn.tool_uses
        ]
    return message


@dataclass(slots=True)
class _Use:
    id: str = ""
    name: str = ""
    arguments: str = ""

    def add(self, delta: Mapping[str, Any]) -> None:
        function = delta.get("function") or {}
        self.id = self.id or str(delta.get("id") or "")
        self.name += str(function.get("name") or "")
        self.arguments += str(function.get("arguments") or "")
        if len(self.arguments) > ARGUMENTS_MAX_CHARS:
            raise LinkBroken(f"a tool's arguments have more than {ARGUMENTS_MAX_CHARS} characters")


@dataclass(slots=True)
class Assembly:
    """What the events of one answer add up to."""

    finish: str = ""
    chars: int = 0
    uses: dict[int, _Use] = field(default_factory=dict)
    usage: Mapping[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> str:
        """Take one event in; returns the text it adds."""
        if isinstance(usage := event.get("usage"), Mapping):
            self.usage = usage
        text = ""
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                text += self._choice(choice)
        self.chars += len(text)
        if self.chars > ANSWER_MAX_CHARS:
            raise LinkBroken(f"the answer has more than {ANSWER_MAX_CHARS} characters")
        return text

    def _choice(self, choice: Mapping[str, Any]) -> str:
        # A whole answer where the endpoint does not stream, else what is new.
        delta = choice.get("delta") or choice.get("message") or {}
        for position, call in enumerate(delta.get("tool_calls") or ()):
            number = call.get("index", position)
            if number not in self.uses and len(self.uses) >= TOOL_USES_MAX:
                raise LinkBroken(f"the model calls more than {TOOL_USES_MAX} tools at once")
            self.uses.setdefault(number, _Use()).add(call)
        self.finish = choice.get("finish_reason") or self.finish
        return str(delta.get("content") or "")

    def last(self) -> ChatPiece:
        """The piece that ends the answer."""
        uses = [_use(number, use) for number, use in sorted(self.uses.items())]
        finish = "tool_calls" if uses else self.finish if self.finish in FINISHES - {"tool_calls"} else "stop"
        read, written = (_count(self.usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        return ChatPiece(tool_uses=uses, finish_reason=finish, input_tokens=read, output_tokens=written)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


def _use(number: int, use: _Use) -> ToolUse:
    """What the model got wrong stays with the use: whoever carries it out tells the model."""
    name, problem = use.name, ""
    arguments: Any = {}
    try:
        arguments = json.loads(use.arguments or "{}", parse_constant=_no_constant)
        if not isinstance(arguments, dict):
            arguments, problem = {}, "the arguments are no JSON object"
    except ValueError as error:
        problem = f"the arguments are no JSON: {error}"
    return ToolUse(use.id or f"call-{number}", name, arguments, raw=use.arguments, problem=problem)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


async def pieces(events: AsyncIterator[str]) -> AsyncIterator[ChatPiece]:
    """Deltas as they come, and the last piece; `LinkBroken` for an answer that is cut or no JSON."""
    assembly, done = Assembly(), False
    async for data in events:
        if data == DONE:
            done = True
            break
        if text := assembly.take(parsed(data)):
            yield ChatPiece(text)
    if not (done or assembly.finish):
        raise LinkBroken("the answer ended before its end")
    yield assembly.last()


def parsed(data: str | bytes) -> dict[str, Any]:
    """One JSON object of the endpoint's; an error in place of an answer is one, too."""
    try:
        found = json.loads(data)
    except ValueError as error:
        raise LinkBroken("the model's endpoint sent what is no JSON") from error
    if not isinstance(found, dict):
        raise LinkBroken("the model's endpoint sent what is no JSON object")
    if found.get("error"):
        raise LinkBroken(f"the model's endpoint gave up: {said(found)}")
    return found


def said(body: Mapping[str, Any]) -> str:
    """What an error's body says, cut."""
    error = body.get("error")
    text = error.get("message") if isinstance(error, Mapping) else error
    return str(text or "")[:300]


def vectors(body: Mapping[str, Any], count: int) -> Sequence[Sequence[float]]:
    """The embeddings in the order they were asked for."""
    try:
        found = sorted(body["data"], key=lambda item: int(item["index"]))
        rows = [[float(number) for number in item["embedding"]] for item in found]
    except (KeyError, TypeError, ValueError) as error:
        raise LinkBroken("the model's endpoint sent no embeddings") from error
    if len(rows) != count or len({len(row) for row in rows}) > 1 or not all(rows):
        raise LinkBroken(f"the model's endpoint sent {len(rows)} embeddings of {count}")
    return rows
