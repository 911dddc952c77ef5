"""The bounds of the HTTP server, with their unit last and their reason beside them."""

from __future__ import annotations

from typing import Final

# The factory keeps a few connections and may open some more for streams; nobody else can connect.
CONNECTIONS_MAX: Final = 128
HEAD_MAX_BYTES: Final = 32 * 1024
HEADERS_MAX: Final = 100
BODY_MAX_BYTES: Final = 4 * 1024 * 1024  # as gRPC's messages
# What may wait behind a request that is being answered, before we stop to read.
AHEAD_MAX_BYTES: Final = 64 * 1024
WRITE_BUFFER_MAX_BYTES: Final = 256 * 1024

IDLE_MAX_S: Final = 120.0
RECEIVE_MAX_S: Final = 30.0  # from the first byte of a request to its last
WRITE_STALL_MAX_S: Final = 30.0
STOP_GRACE_S: Final = 0.2
