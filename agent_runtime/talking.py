"""Who answers in an agent: the code of its profile, or its model with its tools; in a chat, and in a task."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from agent_runtime.chat import Conversation, Tools, converse
from agent_runtime.conversations import Conversations
from agent_runtime.limits import RESULT_MAX_BYTES, TOOL_DEFAULT_S
from agent_runtime.models import Offer
from agent_runtime.parts import Parts
from agent_runtime.profile import Agent, ChatPiece, ChatTurn, ToolUse
from agent_runtime.tasks import Result, Steps
from agent_runtime.tools.registry import Outcome
from wire.errors import Exhausted, FactoryError, Refused

Pieces = AsyncGenerator[ChatPiece, None]

TEXT: Final = "text"
CONTEXT_MAX_CHARS: Final = 256
# What comes with a task from another protocol: ids of the message and of the context that it belongs to.
A2A: Final = "a2a"


class Asked(NamedTuple):
    """A task in words: what it says, and in which context."""

    text: str
    context: str


def asked(task_input: Mapping[str, Any]) -> Asked | None:
    """What a task says to whoever reads words; None for one that is not in words.

    What the input has beside its text goes with it, as JSON.
    """
    text, theirs = task_input.get(TEXT), task_input.get(A2A)
    theirs = theirs if isinstance(theirs, Mapping) else {}
    if not theirs and not (isinstance(text, str) and text):
        return None
    rest = {key: value for key, value in task_input.items() if key not in (TEXT, A2A)}
    lines = [str(text)] if text else []
    if rest:
        lines.append(json.dumps(rest, ensure_ascii=False))
    return Asked("\n\n".join(lines), str(theirs.get("contextId", ""))[:CONTEXT_MAX_CHARS])


class Talking:
    """The conversations of one agent."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.contexts = Conversations()

    @property
    def takes_words(self) -> bool:
        """Whether tasks in words are conversations here: the code does none itself, and somebody can answer."""
        from agent_runtime.profiles.generic import Generic

        own_tasks = type(self._parts.code).run_task not in (Agent.run_task, Generic.run_task)
        return not own_tasks and (self._parts.model_named or self._own_chat)

    @property
    def _own_chat(self) -> bool:
        return type(self._parts.code).chat is not Agent.chat

    async def turn(self, said: Asked, scopes: frozenset[str], steps: Steps) -> Result:
        """Answer a task in words as one turn of its context, and remember it there when it has ended well."""
        turns = [*self.contexts.turns(said.context), ChatTurn("user", said.text)]
        texts, last, size_chars = list[str](), ChatPiece(), 0
        async with aclosing(self.answer(Conversation(turns), scopes)) as pieces:
            async for piece in pieces:
                last = piece
                if piece.delta:
                    size_chars += len(piece.delta)
                    if size_chars > RESULT_MAX_BYTES // 2:
                        raise Exhausted("the answer is too long for a task's output", quota="result bytes")
                    texts.append(piece.delta)
                    await steps.say(piece.delta)
                elif piece.tool_uses and not piece.finish_reason:
                    names = ", ".join(use.name[:64] for use in piece.tool_uses)
                    await steps(0.0, f"calls {names}", {})
        if last.tool_uses:
            raise Refused("the answer ends in calls of tools, which nobody carries out for a task")
        text = "".join(texts)
        self.contexts.add(said.context, said.text, text)
        return Result({TEXT: text}, answered=last)

    async def answer(self, conversation: Conversation, scopes: frozenset[str]) -> Pieces:
        """Answer by the profile's own code, or by its model and tools."""
        if self._own_chat:
            _refuse_form(conversation)
            async for piece in self._own_answer(conversation.messages):
                yield piece
            return

        async def call_tool(use: ToolUse) -> Outcome:
            return await self._tool_of_model(use, scopes)

        parts = self._parts
        found = parts.registry.visible(**parts.reach(scopes))
        offers = [Offer(tool.name, tool.description, tool.input_schema) for tool in found]
        tools = Tools(offers, call_tool, parts.tool_rounds_max)
        async with aclosing(converse(parts.model, conversation, tools)) as pieces:
            async for piece in pieces:
                yield piece

    async def _own_answer(self, messages: Sequence[ChatTurn]) -> Pieces:
        ended = False
        try:
            async for piece in self._parts.code.chat(messages):
                ended = bool(piece.finish_reason)
                yield piece
        except Exception as error:
            raise self._parts.caller.failure(error) from error
        if not ended:
            yield ChatPiece(finish_reason="stop")

    async def _tool_of_model(self, use: ToolUse, scopes: frozenset[str]) -> Outcome:
        """Call a tool that a model asked for; what the model got wrong goes back to it as text."""
        parts = self._parts

        async def ignore(_fraction: float, _message: str, _detail: Mapping[str, Any]) -> None:
            return None

        try:
            tool = parts.registry.require(use.name, **parts.reach(scopes))
            try:
                return await parts.registry.call(tool, use.arguments, TOOL_DEFAULT_S, ignore)
            except Exception as error:
                raise parts.caller.failure(error) from error
        except FactoryError as error:
            return Outcome(error.message, is_error=True)


def _refuse_form(conversation: Conversation) -> None:
    """Code answers as it does: it is not told how, and so cannot be held to a form."""
    conversation.options.refuse_forced("the agent's own code")
