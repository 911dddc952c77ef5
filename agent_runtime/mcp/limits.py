"""The bounds of the MCP endpoint, with their unit last and their reason beside them."""

from __future__ import annotations

from typing import Final

# A call has no deadline of its own in MCP; the client ends it by going away.
CALL_MAX_S: Final = 600.0
ASK_MAX_S: Final = 300.0  # a person may have to answer
ROUNDS_MAX: Final = 8  # of questions within one call

PAGE_MAX: Final = 500
# Messages that wait for a client that does not read: the oldest go.
WAITING_MAX: Final = 256
WAITING_MAX_BYTES: Final = 4 * 1024 * 1024
STREAMS_MAX: Final = 64
STREAMS_OF_CALLER_MAX: Final = 32  # so that one caller never takes all of them
KEEP_ALIVE_S: Final = 15.0

SESSIONS_MAX: Final = 64
SESSION_IDLE_MAX_S: Final = 3600.0
CLIENT_MAX_BYTES: Final = 24 * 1024  # of what a client says of itself; more than the factory takes
SUBSCRIPTIONS_MAX: Final = 256
URI_MAX_CHARS: Final = 2048
STATE_MAX_CHARS: Final = 64 * 1024
"""What a tool may hand to its caller, to have it back with the answers."""
ANSWER_MAX_BYTES: Final = 32 * 1024 * 1024
"""The largest file of a skill pack in base64, and some more."""
