"""`/v1/chat/completions` and `/v1/models`: agents as models, `<crew id>/<agent name>` or an agent's id.

Everything that goes wrong has OpenAI's shape here, also what the guard refuses, for its clients read no other.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from factory_server.api.http.app import Arrived, HttpFace, read_body
from factory_server.api.http.context import HttpContext
from factory_server.api.http.failures import Aborted
from factory_server.core import model
from factory_server.core.lifecycle import TERMINAL
from factory_server.services.chat import Chats
from hyperfactory.v1 import agent_service_pb2 as pb
from wire import completions
from wire.errors import FactoryError, Invalid
from wire.guarded import GuardedMethod
from wire.json_fields import bad
from wire.policy import Caller, Principal, Row, current_caller
from wire.status import from_status
from wire.tokens import SCOPES
from wire.validation import RequestValidator

ID_BYTES: Final = 12
MODELS_MAX_S: Final = 10.0
MODEL_PATH: Final = completions.MODELS_PATH + "/{model}"
"""Its name has a slash, which clients send as it is or as %2F."""
TALKERS: Final = frozenset({Principal.OPERATOR, Principal.AGENT})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def rows() -> tuple[Row, Row, Row]:
    """Who may talk and look: as Chat's row in the contract says. Whose agents, the handlers ask themselves."""
    return (
        Row(f"POST {completions.PATH}", TALKERS, SCOPES),
        Row(f"GET {completions.MODELS_PATH}", TALKERS, SCOPES, default_deadline_s=MODELS_MAX_S),
        Row(f"GET {MODEL_PATH}", TALKERS, SCOPES, default_deadline_s=MODELS_MAX_S),
    )


def add_routes(face: HttpFace, chats: Chats, agents: Callable[[], Mapping[str, model.AgentRow]]) -> None:
    """Serve the paths; `agents` are the live ones, by id."""
    talk = Talk(chats, agents)
    served = (
        ("POST", completions.PATH, talk.chat),
        ("GET", completions.MODELS_PATH, talk.models),
        ("GET", MODEL_PATH.replace("{model}", "{model:.+}"), talk.model),
    )
    for (verb, path, handler), row in zip(served, rows(), strict=True):
        face.app.router.add_route(verb, path, _shaped(face, handler, row))


def _shaped(face: HttpFace, handler: Handler, row: Row) -> Handler:
    """The handler behind the guard; its failures in OpenAI's shape."""

    async def behave(arrived: Arrived, _context: Any) -> web.StreamResponse:
        return await handler(arrived.http)

    guarded = GuardedMethod(row, behave, None, face.guards, request_streaming=False)

    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            found: web.StreamResponse = await guarded.call(Arrived(request), HttpContext(request, face.peers))
        except Aborted as error:
            return _failed(from_status(error.status))
        except FactoryError as error:
            return _failed(error)
        return found

    return serve


class Talk:
    """The paths."""

    def __init__(self, chats: Chats, agents: Callable[[], Mapping[str, model.AgentRow]]) -> None:
        self._chats = chats
        self._agents = agents
        self._validate = RequestValidator()

    async def models(self, _request: web.Request) -> web.Response:
        """The agents that the caller may talk with."""
        crew = _own_crew(current_caller())
        shown = [
            _entry(agent)
            for agent in sorted(self._agents().values(), key=lambda agent: (agent.crew, agent.name))
            if agent.state not in TERMINAL and crew in ("", agent.crew)
        ]
        return web.json_response({"object": "list", "data": shown})

    async def model(self, request: web.Request) -> web.Response:
        """One of them."""
        own_crew = _own_crew(current_caller())
        return web.json_response(
            _entry(await self._chats.find(request.match_info["model"], own_crew=own_crew))
        )

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """One completion, streamed where the caller wishes; it ends when the caller goes away."""
        wanted = completions.read(await read_body(request))
        if not wanted.model:
            raise bad("model", "is required: `<crew id>/<agent name>`, or an agent's id")
        if wrong := completions.named(self._validate(wanted.chat), wanted):
            raise Invalid(f"{wrong[0].field}: {wrong[0].description}", violations=wrong)
        caller = current_caller()
        agent = await self._chats.find(wanted.model, own_crew=_own_crew(caller))
        ident = f"chatcmpl-{secrets.token_hex(ID_BYTES)}"
        answer = completions.Answer(ident, int(datetime.now(UTC).timestamp()), wanted)
        async with aclosing(self._chats.talk(agent.id, wanted.chat, caller.scopes)) as said:
            if wanted.stream:
                return await _streamed(request, answer, said)
            async for response in said:
                answer.add(response)
        return web.json_response(answer.whole())


async def _streamed(
    request: web.Request, answer: completions.Answer, said: AsyncGenerator[pb.ChatResponse, None]
) -> web.StreamResponse:
    # What goes wrong before the first word is an answer of its own, with its status.
    first = await anext(said)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    await response.write(answer.start() + b"".join(answer.events(first)))
    try:
        async for piece in said:
            await response.write(b"".join(answer.events(piece)))
    except FactoryError as error:
        await response.write(completions.sse(completions.failure(error)[1]))
    await response.write_eof()
    return response


def _entry(agent: model.AgentRow) -> dict[str, Any]:
    return completions.model(f"{agent.crew}/{agent.name}", int(agent.created_at.timestamp()), agent.profile)


def _own_crew(caller: Caller) -> str:
    """The crew to which an agent is bound; '' for callers who are not."""
    return caller.crew if caller.principal is Principal.AGENT else ""


def _failed(error: FactoryError) -> web.Response:
    status, body, headers = completions.failure(error)
    return web.json_response(body, status=status, headers=headers)
