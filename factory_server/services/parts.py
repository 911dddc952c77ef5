"""What the use cases are given: the ports, and the few facts about this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from factory_server.core import ids, ports
from factory_server.core.sandbox import Driver
from factory_server.services.hub import Hub
from factory_server.services.measures import Measures


def utc_now() -> datetime:
    """The wall clock; it is the database's where both run on one host, and kept near it by NTP elsewhere."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Parts:
    """The ports behind the use cases. `owner` names this process in leases."""

    store: ports.Store
    bus: ports.Bus
    driver: Driver
    identities: ports.Identities
    open_line: Callable[[str], ports.Line]
    owner: str
    hub: Hub = field(default_factory=Hub)
    measures: Measures = field(default_factory=Measures)
    now: Callable[[], datetime] = utc_now
    entropy: Callable[[int], bytes] = os.urandom

    def new_id(self, prefix: str) -> str:
        """A new id of this kind."""
        return ids.make_id(prefix, int(self.now().timestamp() * 1000), self.entropy(5))
