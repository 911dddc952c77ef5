"""Questions of agents on the stream of a call: the client gets them under ids of ours, since agents choose theirs
alike, and its answers find the agent that asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from factory_server.api.http.mcp_sessions import AgentSession, Session
from wire.mcp import messages
from wire.mcp.errors import McpError
from wire.mcp.messages import Json
from wire.mcp.revisions import CANCELLED

EVENT_BYTES_MAX: Final = 1 << 20
"""Of an event that may be a question; what is longer passes as it comes, unread."""

_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_END_BYTES: Final = 4
_FIELD: Final = b"data:"
_SAYS: Final = b'"method"'


class Questions:
    """Those of one call. `change` is what becomes of its stream; `end` when the call is over."""

    def __init__(self, session: Session, at: AgentSession) -> None:
        self._session = session
        self._at = at
        self._buffer = bytearray()
        self._looked = 0
        self._passing = False
        """The event that comes is too long to be a question."""

    def change(self, data: bytes) -> bytes:
        """The events that are whole now; without data, at the end of the stream, what is left."""
        self._buffer += data
        out = b"".join(self._events())
        kept = len(self._buffer) if not self._passing else _END_BYTES - 1  # the event's end may be cut in two
        passes = len(self._buffer) - (kept if data else 0)
        if passes > 0:
            out += bytes(self._buffer[:passes])
            del self._buffer[:passes]
            self._looked = 0
        return out

    def end(self) -> None:
        """Nobody waits for answers any more."""
        self._session.forget_questions(self)

    def _events(self) -> Iterator[bytes]:
        while (found := _END.search(self._buffer, self._looked)) is not None:
            event = bytes(self._buffer[: found.end()])
            del self._buffer[: found.end()]
            self._looked = 0
            yield event if self._passing else self._renamed(event)
            self._passing = False
        self._looked = max(0, len(self._buffer) - _END_BYTES + 1)
        self._passing = self._passing or len(self._buffer) > EVENT_BYTES_MAX

    def _renamed(self, event: bytes) -> bytes:
        found = _message(event) if _SAYS in event else None
        if found is None or not isinstance(found.get("method"), str):
            return event
        if isinstance(identifier := found.get("id"), str | int):
            ours = self._session.asked(self._at, identifier, self)
            return messages.event({**found, "id": ours})
        params = found.get("params")
        if found["method"] == CANCELLED and isinstance(params, dict):
            known = self._session.taken_back(self._at, params.get("requestId"))
            if known is not None:
                return messages.event({**found, "params": {**params, "requestId": known}})
        return event


def _message(event: bytes) -> Json | None:
    """The JSON of an event's data; None for what is no message."""
    lines = [line[len(_FIELD) :].removeprefix(b" ") for line in event.splitlines() if line.startswith(_FIELD)]
    try:
        found = messages.load(b"\n".join(lines))
    except McpError:
        return None
    return found if isinstance(found, dict) else None
