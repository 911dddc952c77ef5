"""Carry a conversation on: ask the model, call the tools it asks for, stream the answer, stop at a limit."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from agent_runtime.models import Model, Offer, Options, Prompt
from agent_runtime.profile import ChatPiece, ChatTurn, ToolUse
from agent_runtime.tools.registry import Outcome
from wire.errors import FieldViolation, Invalid

CallTool = Callable[[ToolUse], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is to be carried on: the messages, the caller's own tools, and how to answer."""

    messages: Sequence[ChatTurn]
    tools: Sequence[Offer] = ()
    options: Options = field(default_factory=Options)


class Tools(NamedTuple):
    """The agent's tools for one conversation, and how often a model may call some before it must answer."""

    offers: Sequence[Offer]
    call: CallTool
    rounds_max: int


async def converse(model: Model, conversation: Conversation, tools: Tools) -> AsyncGenerator[ChatPiece, None]:
    """The answer in pieces; the last one says why it ended, what the caller shall call, and what it cost."""
    turns, options = list(conversation.messages), conversation.options
    theirs = {offer.name for offer in conversation.tools}
    _check_choice(options.tool_choice, theirs)
    offers = [*conversation.tools, *(offer for offer in tools.offers if offer.name not in theirs)]
    read = written = 0
    for left in reversed(range(tools.rounds_max + 1)):
        prompt = Prompt(turns, offers, options, must_answer=not left and tools.rounds_max > 0)
        text, end = "", ChatPiece()
        async with aclosing(model.answer(prompt)) as pieces:
            async for piece in pieces:
                text += piece.delta
                end = piece
                if piece.delta:
                    yield ChatPiece(piece.delta)
        read, written = read + end.input_tokens, written + end.output_tokens
        outside = [use for use in end.tool_uses if use.name in theirs and not use.problem]
        if outside or not end.tool_uses or not left:
            # Tools of the caller's, or more calls than are allowed, are for the caller: it goes on with them.
            uses = outside or [use for use in end.tool_uses if not use.problem]
            yield ChatPiece("", uses, end.finish_reason, input_tokens=read, output_tokens=written)
            return
        options = options._replace(tool_choice="")  # what it must do first, it has done
        yield ChatPiece(tool_uses=end.tool_uses)
        turns.append(ChatTurn("assistant", text, end.tool_uses))
        turns += [_result(use, await _outcome(use, tools.call)) for use in end.tool_uses]


def _check_choice(choice: str, theirs: Container[str]) -> None:
    """A model can be led to the caller's own tools; the agent's are its own affair."""
    if choice not in ("", "none", "auto", "required") and choice not in theirs:
        violation = FieldViolation("options.tool_choice", "must name one of tools")
        raise Invalid("cannot choose a tool that is none of the caller's", violations=[violation])


async def _outcome(use: ToolUse, call_tool: CallTool) -> Outcome:
    return Outcome(use.problem, is_error=True) if use.problem else await call_tool(use)


def _result(use: ToolUse, outcome: Outcome) -> ChatTurn:
    text = outcome.text or json.dumps(dict(outcome.structured))
    prefix = "error: " if outcome.is_error else ""
    return ChatTurn("tool", prefix + text, tool_call_id=use.id)
