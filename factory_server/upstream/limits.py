"""The bounds of what we hold for agents: what is behind a socket is not ours, and may say anything."""

from __future__ import annotations

from typing import Final

CONNECTIONS_MAX: Final = 100
"""To one agent at once: its own server takes a few more."""
WAITING_MAX: Final = 200
"""Calls that wait for one of them; the next one is refused."""
IDLE_MAX: Final = 8
"""Connections to one agent that are kept between calls."""
IDLE_MAX_S: Final = 30.0
"""Well below the time after which agents close them, so that no call meets a connection that closes."""
CONNECT_MAX_S: Final = 5.0
HEAD_MAX_BYTES: Final = 32 * 1024
HEADERS_MAX: Final = 100
LINE_MAX_BYTES: Final = 256
"""Of a chunk's size."""
BUFFERED_MAX_BYTES: Final = 256 * 1024
"""Of an answer that its reader has not taken; then the agent has to wait."""
