"""Carry a conversation on: ask the model, call the tools it asks for, stream the answer, stop at a limit."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final

from agent_runtime.limits import CHAT_DELTA_MAX_CHARS, CHAT_TOOL_ROUNDS_MAX
from agent_runtime.models import Model
from agent_runtime.profile import ChatPiece, ChatTurn, ToolUse
from agent_runtime.tools.registry import Outcome

TOKEN_CHARS: Final = 4  # a rough count for models that do not count themselves

CallTool = Callable[[ToolUse], Awaitable[Outcome]]


async def converse(
    model: Model, messages: Sequence[ChatTurn], call_tool: CallTool
) -> AsyncGenerator[ChatPiece, None]:
    """The answer in pieces; the last one says why it ended and what it cost."""
    turns = list(messages)
    read = written = 0
    for _ in range(CHAT_TOOL_ROUNDS_MAX):
        read += _tokens(turns)
        answer = await model.answer(turns)
        written += _count(answer.text)
        for delta in _deltas(answer.text):
            yield ChatPiece(delta)
        if not answer.tool_uses:
            yield ChatPiece(finish_reason="stop", input_tokens=read, output_tokens=written)
            return
        yield ChatPiece(tool_uses=answer.tool_uses)
        turns.append(ChatTurn("assistant", answer.text, answer.tool_uses))
        turns += [_result(use, await call_tool(use)) for use in answer.tool_uses]
    # The model would go on calling tools: give back what there is, and say so.
    yield ChatPiece(finish_reason="tool_calls", input_tokens=read, output_tokens=written)


def _result(use: ToolUse, outcome: Outcome) -> ChatTurn:
    text = outcome.text or json.dumps(dict(outcome.structured))
    prefix = "error: " if outcome.is_error else ""
    return ChatTurn("tool", prefix + text, tool_call_id=use.id)


def _deltas(text: str) -> list[str]:
    """The text in pieces that end at spaces, as models stream words."""
    pieces: list[str] = []
    for word in text.split(" "):
        if pieces and len(pieces[-1]) + len(word) < CHAT_DELTA_MAX_CHARS:
            pieces[-1] += f" {word}"
        else:
            pieces.append(f" {word}" if pieces else word)
    return [piece for piece in pieces if piece]


def _tokens(turns: Sequence[ChatTurn]) -> int:
    return sum(_count(turn.content) for turn in turns)


def _count(text: str) -> int:
    return -(-len(text) // TOKEN_CHARS)
