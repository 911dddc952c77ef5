"""Models that answer conversations; the scripted one says what its script says, for the Gym, demos and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agent_runtime.profile import ChatTurn, ToolUse
from wire.errors import FieldViolation, Invalid, Refused

TURNS_MAX: Final = 1000
# An agent without a model of its own repeats politely what it was told.
POLITE: Final[Mapping[str, Any]] = {
    "kind": "scripted",
    "turns": [{"reply": {"text": 'Thank you. You said: "{last}". How can I help?'}, "repeat": True}],
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a model: text, or tools to call first."""

    text: str
    tool_uses: Sequence[ToolUse] = ()


class Model(Protocol):
    """Answers a conversation once."""

    async def answer(self, messages: Sequence[ChatTurn]) -> Answer: ...


def from_config(config: Mapping[str, Any]) -> Model:
    """The model that a profile's config names; without one, the polite echo."""
    model = config.get("model", POLITE)
    if not isinstance(model, Mapping) or model.get("kind") != "scripted":
        raise _bad("model.kind", "must be 'scripted'")
    turns = model.get("turns", [])
    if not isinstance(turns, Sequence) or not 1 <= len(turns) <= TURNS_MAX:
        raise _bad("model.turns", f"must be a list of 1 to {TURNS_MAX} turns")
    return Scripted([_turn(turn, index) for index, turn in enumerate(turns)])


@dataclass(frozen=True, slots=True)
class Turn:
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

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns

    async def answer(self, messages: Sequence[ChatTurn]) -> Answer:
        """The reply of the turn that is due; `Refused` where the conversation leaves the script."""
        index = sum(message.role == "assistant" for message in messages)
        turn = self._due(index)
        last = messages[-1]
        _check(turn.expect, last, index)
        uses = [
            ToolUse(f"call-{index}-{number}", call["name"], dict(call.get("arguments") or {}))
            for number, call in enumerate(turn.tool_calls)
        ]
        return Answer(turn.text.replace("{last}", last.content), uses)

    def _due(self, index: int) -> Turn:
        if index < len(self._turns):
            return self._turns[index]
        if self._turns[-1].repeat:
            return self._turns[-1]
        raise Refused(f"the scripted model has {len(self._turns)} turns and the conversation needs more")


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
