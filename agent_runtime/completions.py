"""`/v1/chat/completions` and `/v1/models` of one agent: the Chat of its own, in the words of OpenAI's clients."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from agent_runtime import translate
from agent_runtime.assumed import AssumedAgent
from agent_runtime.http.messages import Handler, Request, Response, events, json_response
from agent_runtime.validation import violations
from hyperfactory.v1 import agent_service_pb2 as pb
from wire import completions
from wire.errors import FactoryError, Invalid
from wire.policy import current_caller

ID_BYTES: Final = 12


class Completions:
    """The two paths; whoever comes here has passed the front."""

    def __init__(self, agent: AssumedAgent) -> None:
        self._agent = agent

    def routes(self) -> Mapping[str, Mapping[str, Handler]]:
        return {
            completions.PATH: {"POST": self._chat},
            completions.MODELS_PATH: {"GET": self._models},
        }

    async def _models(self, _request: Request) -> Response:
        facts = self._agent.facts
        entry = completions.model(f"{facts.crew}/{facts.name}", _now(), facts.profile)
        return json_response({"object": "list", "data": [entry]})

    async def _chat(self, request: Request) -> Response:
        try:
            wanted = completions.read(request.body)
            if wrong := completions.named(violations(wanted.chat), wanted):
                raise Invalid(f"{wrong[0].field} {wrong[0].description}", violations=wrong)
            answer = completions.Answer(f"chatcmpl-{secrets.token_hex(ID_BYTES)}", _now(), wanted)
            said = self._said(wanted.chat)
            if wanted.stream:
                # What goes wrong before the first word is an answer of its own, with its status.
                return events(_stream(answer, await anext(said), said))
            async with aclosing(said):
                async for response in said:
                    answer.add(response)
            return json_response(answer.whole())
        except FactoryError as error:
            status, body, headers = completions.failure(error)
            return json_response(body, status, headers)

    async def _said(self, chat: pb.ChatRequest) -> AsyncGenerator[pb.ChatResponse, None]:
        pieces = self._agent.chat(translate.conversation(chat), current_caller().scopes)
        async with aclosing(pieces):
            async for piece in pieces:
                yield translate.chat_response(piece)


async def _stream(
    answer: completions.Answer, first: pb.ChatResponse, rest: AsyncGenerator[pb.ChatResponse, None]
) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield answer.start() + b"".join(answer.events(first))
        try:
            async for response in rest:
                yield b"".join(answer.events(response))
        except FactoryError as error:
            yield completions.sse(completions.failure(error)[1])


def _now() -> int:
    return int(datetime.now(UTC).timestamp())
