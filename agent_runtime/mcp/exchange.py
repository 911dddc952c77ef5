"""What goes to a client before the answer: progress, log messages, and, in the handshake era, questions."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from math import inf
from typing import Any

from agent_runtime.mcp.limits import ASK_MAX_S, WAITING_MAX, WAITING_MAX_BYTES
from agent_runtime.mcp.sessions import Session
from agent_runtime.tasks import Progress
from wire.errors import DeadlineExceeded
from wire.mcp import forms, messages
from wire.mcp.errors import McpError
from wire.mcp.messages import Json
from wire.mcp.revisions import LOG_LEVELS, LOGGED


class Exchange:
    """The way back of one request. `heard` tells whether anybody wants what comes before the answer."""

    def __init__(
        self, token: str | int | None = None, level: str | None = None, session: Session | None = None
    ) -> None:
        self._token = token
        self._level = level
        self._session = session
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._done = -1.0
        self._ended = False

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    @property
    def heard(self) -> bool:
        return self._token is not None or self._level is not None or self._session is not None

    def progress(self, step: Progress) -> None:
        """Progress only rises: what falls back is not told."""
        if self._token is not None and inf > step.fraction > self._done:
            self._done = step.fraction
            self._send(forms.progress(self._token, step.fraction, 1.0, step.message))

    def log(self, level: str, data: Any) -> None:
        least = self._session.level if self._session is not None else self._level
        if least is not None and level in LOG_LEVELS and LOG_LEVELS.index(level) >= LOG_LEVELS.index(least):
            self._send(messages.notification(LOGGED, {"level": level, "logger": "tool", "data": data}))

    async def ask(self, method: str, params: Mapping[str, Any]) -> Any:
        """Ask the client, who answers with a request of its own to us."""
        if self._session is None:
            raise McpError(-32603, "there is no session in which to ask")
        identifier = os.urandom(16).hex()
        with self._session.answers_to(identifier) as answer:
            self._send(messages.request(identifier, method, params))
            try:
                async with asyncio.timeout(ASK_MAX_S):
                    return await answer
            except TimeoutError:
                raise DeadlineExceeded(f"the client did not answer within {ASK_MAX_S:g} s") from None

    def _send(self, message: Json) -> None:
        """Encoded here, so that what is no JSON fails whoever says it and not the stream."""
        event = messages.event(message)
        self._waiting.append(event)
        self._waiting_bytes += len(event)
        while len(self) > WAITING_MAX or (len(self) > 1 and self._waiting_bytes > WAITING_MAX_BYTES):
            self._waiting_bytes -= len(self._waiting.popleft())
        self._news.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._news.set()

    async def next(self) -> bytes | None:
        """The next message as an event; None when there will be none."""
        while not self._waiting:
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        event = self._waiting.popleft()
        self._waiting_bytes -= len(event)
        return event
