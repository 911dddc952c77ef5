"""JSON-RPC 2.0 with one server: requests with their answers, its questions, progress, cancellation, notices."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agent_runtime.limits import PROGRESS_QUEUED_MAX
from agent_runtime.owner import TaskOwner
from agent_runtime.servers.condition import Down
from agent_runtime.servers.limits import QUESTIONS_MAX
from wire.mcp import messages
from wire.mcp.errors import INTERNAL_ERROR, INVALID_REQUEST, PARSE_ERROR, McpError
from wire.mcp.messages import Id
from wire.mcp.revisions import CANCELLED, META_PROGRESS_TOKEN, PROGRESS

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
Step = Callable[[Object], Awaitable[None]]
"""Takes the progress of a request."""


class Answered(Exception):
    """The server answered with an error. `data` is what it says to programs, as the URL that a user must open."""

    def __init__(self, code: int, message: str, data: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class _Exchange:
    """A request in flight: what came for it so far."""

    def __init__(self) -> None:
        self.steps: deque[Object] = deque(maxlen=PROGRESS_QUEUED_MAX)
        self.news = asyncio.Event()
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False

    def step(self, progress: Object) -> None:
        self.steps.append(progress)
        self.news.set()

    def settle(self, result: Any, error: Exception | None) -> None:
        """The first answer counts."""
        if not self.done:
            self.result, self.error, self.done = result, error, True
            self.news.set()


class Peer:
    """Our side of the conversation. `send` may wait for the server to read, `reply` may not. `on_request` answers
    the server's own requests, by a result or an `McpError`; `on_garbage` takes lines that are no messages."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        reply: Callable[[bytes], None],
        on_notice: Callable[[str, Object], None],
        on_request: Callable[[str, Object], Awaitable[Object]],
        on_garbage: Callable[[bytes], None],
    ) -> None:
        self._send = send
        self._reply = reply
        self._on_notice = on_notice
        self._on_request = on_request
        self._on_garbage = on_garbage
        self._next = 0
        self._flying: dict[int, _Exchange] = {}
        self._questions: dict[Id, asyncio.Task[None]] = {}
        self._owner = TaskOwner()
        self._ended: Down | None = None

    async def request(
        self, method: str, params: Object, *, on_progress: Step | None = None, cancellable: bool = True
    ) -> Any:
        """The result. `Answered` for an error of the server, `Down` where it ends first. The caller brings the
        deadline; a call that is given up is cancelled at the server, too."""
        if self._ended is not None:
            raise self._ended
        self._next += 1
        number, exchange = self._next, _Exchange()
        if on_progress is not None:
            meta = {**params.get("_meta", {}), META_PROGRESS_TOKEN: number}
            params = {**params, "_meta": meta}
        self._flying[number] = exchange
        try:
            await self._send(messages.line(messages.request(number, method, params)))
            return await _settled(exchange, on_progress)
        except asyncio.CancelledError:
            if cancellable and self._ended is None:
                self.notify(CANCELLED, {"requestId": number, "reason": "nobody waits for it"})
            raise
        finally:
            del self._flying[number]

    def notify(self, method: str, params: Object | None = None) -> None:
        self._reply(messages.line(messages.notification(method, params)))

    def end(self, cause: Down) -> None:
        """The server is gone: whoever waits is told."""
        self._ended = self._ended or cause
        for exchange in self._flying.values():
            exchange.settle(None, self._ended)

    async def close(self) -> None:
        """Forget the questions that are open."""
        await self._owner.close()

    def receive(self, line: bytes) -> None:
        """Take one line; what is no message of JSON-RPC is set aside, as many servers print to their output."""
        if not line.startswith((b"{", b"[")):
            self._on_garbage(line)  # told apart at a glance: a flood of such lines costs little
            return
        try:
            message = messages.load(line)
        except McpError as error:
            exchange = self._flying.get(_number(messages.id_in(line)))
            if exchange is None:
                self._on_garbage(line)
            else:
                exchange.settle(None, Answered(PARSE_ERROR, f"the server's answer cannot be read: {error}"))
            return
        for item in message if isinstance(message, list) else [message]:
            if isinstance(item, dict):
                self._take(item)

    def _take(self, message: dict[str, Any]) -> None:
        method, number = message.get("method"), message.get("id")
        if not isinstance(method, str):
            exchange = self._flying.get(_number(number))
            if exchange is not None:
                exchange.settle(message.get("result"), _error(message))
            return
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        if number is None:
            self._notice(method, params)
        elif isinstance(number, str | int):
            self._asked(method, number, params)

    def _notice(self, method: str, params: Object) -> None:
        if method == PROGRESS:
            if exchange := self._flying.get(_number(params.get(META_PROGRESS_TOKEN))):
                exchange.step(params)
        elif method == CANCELLED:
            number = params.get("requestId")
            if isinstance(number, str | int) and (task := self._questions.get(number)):
                task.cancel()
        else:
            self._on_notice(method, params)

    def _asked(self, method: str, number: Id, params: Object) -> None:
        """A request of the server: a sign of life at once, anything else when there is an answer."""
        if method == "ping":
            self._reply(messages.line(messages.result(number, {})))
        elif number in self._questions or len(self._questions) >= QUESTIONS_MAX:
            wrong = McpError(INVALID_REQUEST, f"more than {QUESTIONS_MAX} open requests, or one id twice")
            self._reply(messages.line(messages.error(number, wrong)))
        elif self._ended is None:
            task = self._owner.spawn(self._answer(method, number, params), f"asked {method}"[:80])
            self._questions[number] = task
            task.add_done_callback(lambda _: self._questions.pop(number, None))

    async def _answer(self, method: str, number: Id, params: Object) -> None:
        try:
            answer = messages.result(number, await self._on_request(method, params))
        except McpError as error:
            answer = messages.error(number, error)
        except Exception:
            log.exception("cannot answer a server's request", extra={"method": method[:80]})
            answer = messages.error(number, McpError(INTERNAL_ERROR, "a defect of the client"))
        self._reply(messages.line(answer))


async def _settled(exchange: _Exchange, on_progress: Step | None) -> Any:
    while True:
        await exchange.news.wait()
        exchange.news.clear()
        done = exchange.done
        while exchange.steps and on_progress is not None:
            await on_progress(exchange.steps.popleft())
        if done:
            break
    if exchange.error is not None:
        raise exchange.error
    return exchange.result


def _number(given: Any) -> int:
    """One of our own numbers, which some servers give back as text; 0 is none."""
    if isinstance(given, str) and given.isdecimal() and len(given) < 16:
        return int(given)
    return given if isinstance(given, int) and not isinstance(given, bool) else 0


def _error(message: Object) -> Answered | None:
    error = message.get("error")
    if error is None:
        return None
    if not isinstance(error, dict):
        return Answered(0, "an error without a description")
    code, text, data = error.get("code"), error.get("message"), error.get("data")
    return Answered(
        code if isinstance(code, int) else 0,
        str(text or "an error without a description"),
        data if isinstance(data, dict) else None,
    )
