"""Every bound of the proxy in one place, with its unit last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HEAD_MAX_BYTES: Final = 8 * 1024
HEADERS_MAX: Final = 64
CHUNK_BYTES: Final = 64 * 1024
BACKLOG: Final = 64
ADDRESSES_MAX: Final = 8
"""Of one name, so many are tried."""
THREADS_MAX: Final = 16
"""For the host's resolver, which blocks: threads of its own, so that no other work waits for them."""


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """What one proxy holds at most, and how long. Beyond a number of connections nobody is accepted."""

    crew_connections: int = 64
    all_connections: int = 256
    """Each holds two descriptors of the factory's."""
    crew_lookups: int = 4
    """At once; a lookup that takes too long holds its place until it ends."""
    pace_s: float = 0.005
    """Between two connections of one crew: each one costs an audit line."""
    head_s: float = 10.0
    lookup_s: float = 5.0
    connect_s: float = 10.0
    idle_s: float = 300.0
    life_s: float = 3600.0
    connection_bytes: int = 1024**3
    crew_bytes: int = 16 * 1024**3
    """Since this process opened the crew's socket."""
