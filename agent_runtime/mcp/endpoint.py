"""MCP over HTTP: which era a request is of, its answer as JSON or as a stream, and errors in the right words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Final

from agent_runtime.assumed import AssumedAgent
from agent_runtime.http.messages import JSON_TYPE, HttpError, Request, Response, events
from agent_runtime.mcp import answers, methods
from agent_runtime.mcp.asked import Asked
from agent_runtime.mcp.exchange import Exchange
from agent_runtime.mcp.limits import CLIENT_MAX_BYTES, SUBSCRIPTIONS_MAX, URI_MAX_CHARS
from agent_runtime.mcp.listeners import Listeners, offered
from agent_runtime.mcp.sealing import Sealer
from agent_runtime.mcp.sessions import Session, Sessions
from agent_runtime.owner import TaskOwner
from wire.errors import FactoryError
from wire.mcp import checks, forms, messages
from wire.mcp.checks import Client
from wire.mcp.errors import INTERNAL_ERROR, McpError, bad_request, from_native, invalid_params
from wire.mcp.messages import Id, Json, Message, Notification
from wire.mcp.revisions import CANCELLED, HANDSHAKE, SESSION_HEADER, STATELESS, VERSION_HEADER
from wire.policy import current_caller

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = "1"

Said = tuple[bytes, int]
"""A response and its HTTP status."""


class Endpoint:
    """The MCP endpoint of one agent."""

    def __init__(self, agent: AssumedAgent) -> None:
        self._agent = agent
        self._sessions = Sessions()
        self._listeners = Listeners(agent)
        self._sealer = Sealer()
        self._tasks = TaskOwner()

    async def post(self, request: Request) -> Response:
        """One message: a request, a notification, or the answer to a question of ours."""
        if request.media_type() != JSON_TYPE:
            raise HttpError(415, "a message is application/json")
        try:
            message = messages.parse(request.body)
        except McpError as error:
            return _json(messages.error(messages.id_in(request.body), error), error.status)
        if isinstance(message, messages.Request):
            return await self._request(request, message)
        return self._told(request, message)

    async def get(self, request: Request) -> Response:
        """The handshake era's stream of what the agent says by itself."""
        if request.headers.get(VERSION_HEADER) == STATELESS:
            raise HttpError(405, "listen by subscriptions/listen", {"allow": "POST"})
        if "text/event-stream" not in request.headers.get("accept", ""):
            raise HttpError(406, "the stream is text/event-stream")
        session = self._session(request)
        self._check_room()
        return events(self._listeners.session(session, current_caller()))

    async def delete(self, request: Request) -> Response:
        """The client ends its session."""
        session = self._session(request)
        if session is None:
            raise HttpError(405, "there is no session to end", {"allow": "POST, GET"})
        self._sessions.end(session)
        return Response(204)

    def _check_room(self) -> None:
        try:
            self._listeners.check(current_caller())
        except FactoryError as error:
            raise HttpError(503, error.message) from error

    def _session(self, request: Request) -> Session | None:
        """The session that a request names; without a name there is none."""
        identifier = request.headers.get(SESSION_HEADER)
        if identifier is None:
            return None
        session = self._sessions.get(identifier, current_caller().spiffe)
        if session is None:
            raise HttpError(404, "there is no such session; begin a new one")
        return session

    async def _request(self, http: Request, message: messages.Request) -> Response:
        try:
            if checks.is_stateless(http.headers, message):
                return await self._stateless(http, message)
            return await self._handshake(http, message)
        except (McpError, FactoryError) as error:
            wrong = error if isinstance(error, McpError) else from_native(error)
            stateless = checks.is_stateless(http.headers, message)
            status = wrong.status if stateless or wrong.status == 400 else 200
            return _json(messages.error(message.id, wrong), status)

    async def _stateless(self, http: Request, message: messages.Request) -> Response:
        client = checks.check_stateless(http.headers, message)
        exchange = Exchange(checks.progress_token(message), checks.log_level(message))
        asked = self._asked(http, message, client, exchange)
        if message.method == "subscriptions/listen":
            return self._listen(asked)
        return await self._respond(asked)

    async def _handshake(self, http: Request, message: messages.Request) -> Response:
        revision = http.headers.get(VERSION_HEADER, HANDSHAKE[0])
        if message.method == "initialize":
            return self._initialize(message)
        session = self._session(http)
        client = session.client if session is not None else Client(revision=revision)
        exchange = Exchange(checks.progress_token(message), session=session)
        return await self._respond(self._asked(http, message, client, exchange, session))

    def _asked(
        self,
        http: Request,
        message: messages.Request,
        client: Client,
        exchange: Exchange,
        session: Session | None = None,
    ) -> Asked:
        caller = current_caller()
        self._agent.gate.touch()
        return Asked(self._agent, message, http.headers, client, caller, exchange, self._sealer, session)

    def _initialize(self, message: messages.Request) -> Response:
        params = message.params
        asked, able, info = (params.get(key) for key in ("protocolVersion", "capabilities", "clientInfo"))
        if not isinstance(asked, str) or not isinstance(able, dict) or not isinstance(info, dict):
            raise invalid_params("initialize needs protocolVersion, capabilities and clientInfo")
        if len(messages.encode({"capabilities": able, "clientInfo": info})) > CLIENT_MAX_BYTES:
            raise invalid_params(f"a client says at most {CLIENT_MAX_BYTES} bytes of itself")
        revision = asked if asked in HANDSHAKE else HANDSHAKE[0]
        session = self._sessions.begin(current_caller().spiffe, revision, str(info.get("name", "")), able)
        result = {
            "protocolVersion": revision,
            "capabilities": {**methods.capabilities(self._agent), "logging": {}},
            "serverInfo": methods.server_info(self._agent),
        }
        return _json(messages.result(message.id, result), headers={SESSION_HEADER: session.id})

    def _listen(self, asked: Asked) -> Response:
        wanted = asked.params.get("notifications")
        if not isinstance(wanted, dict):
            raise invalid_params("params.notifications says what to listen to")
        self._listeners.check(asked.caller)
        honoured = forms.listenable(wanted, offered(self._agent))
        uris = honoured.get("resourceSubscriptions", ())
        if len(uris) > SUBSCRIPTIONS_MAX or any(len(uri) > URI_MAX_CHARS for uri in uris):
            raise invalid_params(f"a stream may be about {SUBSCRIPTIONS_MAX} resources")
        return events(self._listeners.listen(asked.request.id, honoured, asked.caller))

    async def _respond(self, asked: Asked) -> Response:
        """The answer: at once where nobody would hear what comes before it, else as soon as anything comes."""
        method = methods.method(asked)
        if not asked.exchange.heard:
            return _whole(*await self._work(asked, method))
        working = self._tasks.spawn(self._work(asked, method), f"mcp {asked.request.method}"[:80])
        working.add_done_callback(lambda _: asked.exchange.end())
        if asked.session is not None:
            self._remember(asked.session, asked.request.id, working)
        return await _answered(asked, working)

    async def _work(self, asked: Asked, method: methods.Method) -> Said:
        """The response, also where it is an error: whoever reads the stream finds it there."""
        try:
            return answers.answered(asked, await method(asked)), 200
        except (McpError, FactoryError) as error:
            wrong = error if isinstance(error, McpError) else from_native(error)
            status = wrong.status if asked.client.stateless or wrong.status == 400 else 200
        except Exception:
            log.exception("an MCP method failed", extra={"method": asked.request.method[:80]})
            wrong, status = McpError(INTERNAL_ERROR, "a defect of ours"), 500
        return messages.encode(messages.error(asked.request.id, wrong)), status

    @staticmethod
    def _remember(session: Session, identifier: Id, working: asyncio.Task[Said]) -> None:
        """So that the client can cancel it."""
        session.running[identifier] = working

        def forget(done: asyncio.Task[Said]) -> None:
            if session.running.get(identifier) is done:  # a client may have used the id again
                del session.running[identifier]

        working.add_done_callback(forget)

    def _told(self, http: Request, message: Message) -> Response:
        """A notification, or an answer; neither is answered."""
        session = self._session(http)
        if session is not None:
            match message:
                case Notification(method) if method == CANCELLED:
                    session.cancel(message.params.get("requestId"))
                case messages.Response():
                    session.take(message)
                case _:
                    pass
        elif isinstance(message, messages.Response):
            wrong = bad_request("nobody asked: there is no session")
            return _json(messages.error(None, wrong), wrong.status)
        return Response(202)


async def _answered(asked: Asked, working: asyncio.Task[Said]) -> Response:
    try:
        first = await asked.exchange.next()
    except asyncio.CancelledError:
        working.cancel()
        raise
    if first is None:
        if working.cancelled():
            return Response(202)  # the client does not want it any more
        return _whole(*working.result())
    return events(_stream(asked, working, first))


async def _stream(asked: Asked, working: asyncio.Task[Said], first: bytes) -> AsyncGenerator[bytes, None]:
    """What comes before the answer, then the answer. Closing the stream cancels the work."""
    event: bytes | None = first
    try:
        while event is not None:
            yield event
            event = await asked.exchange.next()
        if not working.cancelled():
            yield messages.event(working.result()[0])
    finally:
        working.cancel()


def _json(message: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return _whole(messages.encode(message), status, headers)


def _whole(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    later = {"retry-after": RETRY_AFTER_S} if status in (429, 503) else {}
    return Response(status, body, {"content-type": JSON_TYPE, **later, **(headers or {})})
