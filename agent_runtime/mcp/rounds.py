"""Questions in the midst of a call: in a result that wants answers, or, in the handshake era, on the stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from agent_runtime.mcp.asked import Asked
from agent_runtime.mcp.limits import ROUNDS_MAX
from agent_runtime.tools.registry import Round
from wire.mcp import forms
from wire.mcp.errors import McpError, invalid_params
from wire.mcp.messages import Json
from wire.mcp.revisions import STATELESS


class Asking(Protocol):
    """What may want answers: a tool's outcome, a prompt."""

    @property
    def asks(self) -> Mapping[str, Any]: ...

    @property
    def state(self) -> str: ...


Answer = TypeVar("Answer", bound=Asking)


def round_of(asked: Asked, name: str) -> Round:
    """What the client says beside the arguments; its state is opened, and refused if it is not ours."""
    answers = asked.object("inputResponses")
    sealed = asked.params.get("requestState", "")
    if not isinstance(sealed, str):
        raise invalid_params("params.requestState is a string")
    state = asked.sealer.open(sealed, _purpose(asked, name)) if sealed else ""
    ask = None if asked.client.stateless or asked.session is None else asked.exchange.ask
    return Round(asked.client.capabilities, answers, state, ask, asked.caller.spiffe)


def _purpose(asked: Asked, name: str) -> str:
    return f"{asked.caller.spiffe} {asked.request.method} {name}"


async def until_complete(
    asked: Asked, once: Callable[[Round], Awaitable[Answer]], first: Round, name: str
) -> Answer | Json:
    """The answer that asks nothing more, or the result that passes the questions on."""
    answer = await once(first)
    rounds = 0
    while answer.asks or answer.state:
        forms.check_inputs(answer.asks, asked.client.capabilities)
        if asked.client.stateless:
            state = asked.sealer.seal(answer.state, _purpose(asked, name)) if answer.state else ""
            return forms.input_required(answer.asks, state, STATELESS)
        rounds += 1
        if rounds > ROUNDS_MAX:
            raise McpError(-32603, f"'{name}' asks more than {ROUNDS_MAX} times")
        answers = {key: await _ask(asked, one) for key, one in answer.asks.items()}
        answer = await once(replace(first, answers=answers, state=answer.state))
    return answer


async def _ask(asked: Asked, one: Mapping[str, Any]) -> Any:
    return await asked.exchange.ask(str(one.get("method")), one.get("params", {}))
