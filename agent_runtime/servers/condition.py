"""How a server is, as a condition of the agent: serving, or not and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from hyperfactory.v1 import types_pb2

MESSAGE_MAX_CHARS: Final = 300
SERVING: Final = "Serving"
STARTING: Final = "Starting"
STOPPED: Final = "Stopped"


class Down(Exception):
    """The server does not serve: a CamelCase reason for programs, a sentence for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Condition:
    """What is known of one server, and since when it has been so."""

    type: str
    reason: str
    message: str = ""
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def serving(self) -> bool:
        return self.reason == SERVING

    def after(self, reason: str, message: str) -> Condition:
        """The condition that follows; the same one where nothing has changed."""
        message = message[:MESSAGE_MAX_CHARS]
        if (reason, message) == (self.reason, self.message):
            return self
        if reason == self.reason:
            return Condition(self.type, reason, message, self.since)
        return Condition(self.type, reason, message)

    def to_message(self) -> types_pb2.Condition:
        status = types_pb2.CONDITION_STATUS_TRUE if self.serving else types_pb2.CONDITION_STATUS_FALSE
        found = types_pb2.Condition(type=self.type, status=status, reason=self.reason, message=self.message)
        found.since.FromDatetime(self.since)
        return found
