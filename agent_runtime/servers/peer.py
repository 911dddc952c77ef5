"""JSON-RPC 2.0 with one server: requests with their answers, progress and cancellation, notifications."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from agent_runtime.limits import PROGRESS_QUEUED_MAX
from agent_runtime.servers.condition import Down
from wire.mcp import messages
from wire.mcp.errors import unknown_method
from wire.mcp.revisions import CANCELLED, META_PROGRESS_TOKEN, PROGRESS

log = logging.getLogger(__name__)

Object = Mapping[str, Any]


class Answered(Exception):
    """The server answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


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
        self.result, self.error, self.done = result, error, True
        self.news.set()


class Peer:
    """Our side of the conversation. `send` may wait for the server to read, `reply` may not."""

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        reply: Callable[[bytes], None],
        on_notice: Callable[[str, Object], None],
    ) -> None:
        self._send = send
        self._reply = reply
        self._on_notice = on_notice
        self._next = 0
        self._flying: dict[int, _Exchange] = {}
        self._ended: Down | None = None

    async def request(
        self,
        method: str,
        params: Object,
        *,
        on_progress: Callable[[Object], Awaitable[None]] | None = None,
        cancellable: bool = True,
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

    def receive(self, line: bytes) -> None:
        """Take one line; what is no message of JSON-RPC is dropped, as many servers print to their output."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            log.info("a server wrote a line that is no JSON", extra={"bytes": len(line)})
            return
        for item in message if isinstance(message, list) else [message]:
            if isinstance(item, dict):
                self._take(item)

    def _take(self, message: dict[str, Any]) -> None:
        method, number = message.get("method"), message.get("id")
        if isinstance(method, str):
            params = message.get("params")
            params = params if isinstance(params, dict) else {}
            if number is None:
                self._notice(method, params)
            else:
                self._answer(method, number)
            return
        exchange = self._flying.get(number) if isinstance(number, int) else None
        if exchange is not None:
            exchange.settle(message.get("result"), _error(message))

    def _notice(self, method: str, params: Object) -> None:
        if method == PROGRESS:
            token = params.get(META_PROGRESS_TOKEN)
            if isinstance(token, int) and (exchange := self._flying.get(token)):
                exchange.step(params)
            return
        self._on_notice(method, params)

    def _answer(self, method: str, number: Any) -> None:
        """A request of the server: we offer it nothing but a sign of life."""
        known = method == "ping"
        answer = messages.result(number, {}) if known else messages.error(number, unknown_method(method))
        self._reply(messages.line(answer))


async def _settled(exchange: _Exchange, on_progress: Callable[[Object], Awaitable[None]] | None) -> Any:
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


def _error(message: Object) -> Answered | None:
    error = message.get("error")
    if error is None:
        return None
    if not isinstance(error, dict):
        return Answered(0, "an error without a description")
    code, text = error.get("code"), error.get("message")
    return Answered(code if isinstance(code, int) else 0, str(text or "an error without a description"))
