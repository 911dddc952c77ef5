"""What a model is asked and answers; the scripted one says what its script says, for the Gym, demos and tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from agent_runtime.limits import CHAT_DELTA_MAX_CHARS
from agent_runtime.profile import ChatPiece, ChatTurn, ToolUse
from wire.errors import FieldViolation, Invalid, Refused

TURNS_MAX: Final = 1000
TOKEN_CHARS: Final = 4
CONFIGURED: Final = "model"
"""Where a profile's config has a script."""
# An agent without a model of its own repeats politely what it was told.
POLITE: Final[Mapping[str, Any]] = {
    "kind": "scripted",
    "turns": [{"reply": {"text": 'Thank you. You said: "{last}". How can I help?'}, "repeat": True}],
}


class Offer(NamedTuple):
    """A tool as a model sees it."""

    name: str
    description: str
    input_schema: Mapping[str, Any]


class Options(NamedTuple):
    """How a model shall answer; None is its own choice."""

    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    tool_choice: str = ""
    """`none`, `auto`, `required`, or one of the caller's own tools by name."""
    response_format: Mapping[str, Any] | None = None
    """As OpenAI's clients write it; None is text."""

    def refuse_forced(self, who: str) -> None:
        """Refused where the answer is wanted in a way that this one cannot be held to."""
        for name, wanted in (
            ("tool_choice", self.tool_choice not in ("", "auto", "none")),
            ("response_format", self.response_format is not None),
        ):
            if wanted:
                raise Refused(f"{name} needs a model behind an endpoint, and here answers {who}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: the conversation so far, and the tools it may want called."""

    messages: Sequence[ChatTurn]
    tools: Sequence[Offer] = ()
    options: Options = field(default_factory=Options)
    must_answer: bool = False
    """It has called tools often enough: now it shall say something."""


class Model(Protocol):
    """Answers a conversation once; `embeds` names the model that turns texts into vectors, '' where none does."""

    embeds: str

    def answer(self, prompt: Prompt) -> AsyncGenerator[ChatPiece, None]:
        """Text as it comes; the last piece says why it ends, which tools it wants called, and what it cost."""

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """A vector for each text."""


def from_config(config: Mapping[str, Any]) -> Model:
    """The model that a profile's config names; without one, the polite echo."""
    model = config.get(CONFIGURED, POLITE)
    if not isinstance(model, Mapping) or model.get("kind") != "scripted":
        raise _bad("model.kind", "must be 'scripted'")
    turns = model.get("turns", [])
    if not isinstance(turns, Sequence) or not 1 <= len(turns) <= TURNS_MAX:
        raise _bad("model.turns", f"must be a list of 1 to {TURNS_MAX} turns")
    return Scripted([_turn(turn, index) for index, turn in enumerate(turns)])


class Turn(NamedTuple):
    """What the script expects of the last message, and what it replies."""

    expect: Mapping[str, Any]
    text: str
    tool_calls: Sequence[Mapping[str, Any]]
    repeat: bool


def _turn(turn: Any, index: int) -> Turn:
    path = f"model.turns[{index}]"
    if not isinstance(turn, Mapping) or not isinstance(turn.get("reply"), Mapping):
        raise _bad(path, "must have a reply")
    expect, reply = turn.get("expect") or {}, turn["reply"]
    if unknown := expect.keys() - {"role", "contains", "equals"}:
        raise _bad(f"{path}.expect", f"cannot expect {', '.join(sorted(unknown))}")
    calls = reply.get("tool_calls", ())
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise _bad(f"{path}.reply.tool_calls", "must each have a name")
    return Turn(expect, str(reply.get("text", "")), calls, bool(turn.get("repeat", False)))


class Scripted:
    """Plays its turns in order. It keeps no state: the turn is the number of answers in the conversation."""

    embeds = ""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns

    async def answer(self, prompt: Prompt) -> AsyncGenerator[ChatPiece, None]:
        """The reply of the turn that is due; `Refused` where the conversation leaves the script."""
        prompt.options.refuse_forced("a script")
        messages = prompt.messages
        index = sum(message.role == "assistant" for message in messages)
        turn = self._due(index)
        last = messages[-1]
        _check(turn.expect, last, index)
        uses = [
            ToolUse(f"call-{index}-{number}", call["name"], dict(call.get("arguments") or {}))
            for number, call in enumerate(turn.tool_calls)
        ]
        text = turn.text.replace("{last}", last.content)
        for delta in _deltas(text):
            yield ChatPiece(delta)
        yield ChatPiece(
            tool_uses=uses,
            finish_reason="tool_calls" if uses else "stop",
            input_tokens=sum(_count(message.content) for message in messages),
            output_tokens=_count(text),
        )

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        raise Refused("the scripted model does not embed")

    def _due(self, index: int) -> Turn:
        if index < len(self._turns):
            return self._turns[index]
        if self._turns[-1].repeat:
            return self._turns[-1]
        raise Refused(f"the scripted model has {len(self._turns)} turns and the conversation needs more")


def _deltas(text: str) -> list[str]:
    """The text in pieces that end at spaces, as models stream words."""
    pieces: list[str] = []
    for word in text.split(" "):
        if pieces and len(pieces[-1]) + len(word) < CHAT_DELTA_MAX_CHARS:
            pieces[-1] += f" {word}"
        else:
            pieces.append(f" {word}" if pieces else word)
    return [piece for piece in pieces if piece]


def _count(text: str) -> int:
    """Roughly, for a model that does not count itself."""
    return -(-len(text) // TOKEN_CHARS)


def _check(expect: Mapping[str, Any], last: ChatTurn, index: int) -> None:
    if "role" in expect and last.role != expect["role"]:
        raise _off_script(index, f"a message of role '{expect['role']}', not '{last.role}'")
    if "equals" in expect and last.content != expect["equals"]:
        raise _off_script(index, f"exactly {expect['equals']!r}")
    if "contains" in expect and str(expect["contains"]) not in last.content:
        raise _off_script(index, f"a message with {expect['contains']!r} in it")


def _off_script(index: int, wanted: str) -> Refused:
    return Refused(f"turn {index + 1} of the scripted model expects {wanted}"[:1000])


def _bad(field: str, description: str) -> Invalid:
    violation = FieldViolation(f"spec.config.{field}", description)
    return Invalid(f"spec.config.{field} {description}", violations=[violation])
