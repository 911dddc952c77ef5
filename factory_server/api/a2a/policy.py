"""Who may call A2A's methods: another's contract carries no `policy` option, so their rows stand here."""

from __future__ import annotations

from typing import Final

from lf.a2a.v1 import a2a_pb2
from wire.policy import Principal, Row, method_path

SERVICE: Final = a2a_pb2.DESCRIPTOR.services_by_name["A2AService"]
OPERATORS: Final = frozenset({Principal.OPERATOR})
READERS: Final = frozenset({"admin", "coder", "reviewer"})
WRITERS: Final = frozenset({"admin", "coder"})
SHORT_S: Final = 10.0

# As the rows of what they come down to: RunTask for what gives work, GetCrew for what looks.
_WRITES: Final = frozenset({"SendMessage", "SendStreamingMessage", "CancelTask"})
_READS: Final = frozenset({"GetTask", "ListTasks", "SubscribeToTask", "GetExtendedAgentCard"})
_UNSUPPORTED: Final = frozenset(
    f"{verb}TaskPushNotificationConfig{plural}"
    for verb, plural in (("Create", ""), ("Get", ""), ("List", "s"), ("Delete", ""))
)
_LONG: Final = frozenset({"SendMessage", "SendStreamingMessage", "SubscribeToTask"})


def rows() -> list[Row]:
    """One for each method; one that the table does not know is refused when the server starts."""
    known = _WRITES | _READS | _UNSUPPORTED
    return [
        Row(
            method_path(method),
            OPERATORS,
            WRITERS if method.name in _WRITES else READERS,
            default_deadline_s=0.0 if method.name in _LONG else SHORT_S,
            audited=method.name in _WRITES,
            ours=False,
        )
        for method in SERVICE.methods
        if method.name in known
    ]
