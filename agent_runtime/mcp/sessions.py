"""Sessions of the handshake era: what a client said in `initialize`, and what is open with it.

A session is only a memory: it may be forgotten at any time, and its client then begins a new one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from agent_runtime.mcp.limits import SESSION_IDLE_MAX_S, SESSIONS_MAX
from wire.mcp.checks import Client
from wire.mcp.errors import INTERNAL_ERROR, McpError
from wire.mcp.messages import Id, Response


@dataclass(eq=False, slots=True)
class Session:
    """One client's."""

    id: str
    spiffe: str
    client: Client
    level: str = "info"
    subscriptions: set[str] = field(default_factory=set)
    running: dict[Id, asyncio.Task[Any]] = field(default_factory=dict)
    used_s: float = field(default_factory=time.monotonic)
    _asked: dict[str, asyncio.Future[Any]] = field(default_factory=dict)

    @contextmanager
    def answers_to(self, identifier: str) -> Iterator[asyncio.Future[Any]]:
        """The answer to a request of ours, when it comes."""
        future = asyncio.get_running_loop().create_future()
        self._asked[identifier] = future
        try:
            yield future
        finally:
            self._asked.pop(identifier, None)

    def take(self, response: Response) -> None:
        """An answer of the client; one that nobody waits for any more is dropped."""
        future = self._asked.get(str(response.id))
        if future is None or future.done():
            return
        if response.error is None:
            future.set_result(response.result)
        else:
            said = str(response.error.get("message", ""))[:200]
            future.set_exception(McpError(INTERNAL_ERROR, f"the client cannot answer: {said}"))

    def cancel(self, identifier: Any) -> None:
        """Stop what the client does not want any more. True is no 1."""
        if type(identifier) in (str, int) and (task := self.running.get(identifier)):
            task.cancel()

    def end(self) -> None:
        for task in self.running.values():
            task.cancel()


class Sessions:
    """A bounded number: of the caller who has most of them the one goes that was unused for longest, so that
    nobody ends another's calls by beginning sessions."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def begin(self, spiffe: str, revision: str, name: str, capabilities: Mapping[str, Any]) -> Session:
        self._forget_idle()
        while len(self._sessions) >= SESSIONS_MAX:
            self.end(self._crowding())
        client = Client(dict(capabilities), name[:128], revision)
        session = Session(os.urandom(16).hex(), spiffe, client)
        self._sessions[session.id] = session
        return session

    def get(self, identifier: str, spiffe: str) -> Session | None:
        """The session of this caller; another's is nobody's business."""
        session = self._sessions.get(identifier)
        if session is None or session.spiffe != spiffe:
            return None
        session.used_s = time.monotonic()
        self._sessions.move_to_end(identifier)
        return session

    def end(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        session.end()

    def _crowding(self) -> Session:
        count = Counter(session.spiffe for session in self)
        most = max(count.values())
        crowd = [session for session in self if count[session.spiffe] == most]
        return next((session for session in crowd if not session.running), crowd[0])

    def _forget_idle(self) -> None:
        now_s = time.monotonic()
        for session in list(self._sessions.values()):
            if now_s - session.used_s > SESSION_IDLE_MAX_S and not session.running:
                self.end(session)
