"""What the factory and its fork server say to each other: JSON in packets over a unix SOCK_SEQPACKET socket.

A request `{"id", "op", …}` is answered by one or more `{"id", "ok", …}` (the last without `more`) or by
`{"id", "error", "kind"}`. Events carry `event` and no `id`.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MESSAGE_MAX_BYTES: Final = 128 * 1024
LABELS_MAX_BYTES: Final = 4096
OUTBOX_MAX: Final = 4096
LIST_PAGE: Final = 20

# Kinds of error.
EXITED: Final = "exited"
EXHAUSTED: Final = "exhausted"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"

Message = dict[str, Any]


def encode(message: Mapping[str, Any]) -> bytes:
    """One packet."""
    return json.dumps(message, separators=(",", ":")).encode()


def decode(packet: bytes) -> Message:
    """One message; ValueError when it is none."""
    message = json.loads(packet)
    if not isinstance(message, dict):
        raise ValueError("a message must be an object")  # noqa: TRY004
    return message


@dataclass(eq=False, slots=True)
class Peer:
    """The server's side of one connection: sends never block, and a peer that does not read is dropped."""

    connection: socket.socket
    outbox: deque[bytes] = field(default_factory=deque)
    closed: bool = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue and try at once."""
        self.outbox.append(encode(message))
        if len(self.outbox) > OUTBOX_MAX:
            self.closed = True
        self.flush()

    def flush(self) -> None:
        """Send what the kernel takes now."""
        try:
            while self.outbox and not self.closed:
                self.connection.send(self.outbox[0])
                self.outbox.popleft()
        except BlockingIOError:
            return
        except OSError:
            self.closed = True
