"""What the use cases are given: the ports, and the few facts about this process."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from factory_server.core import ids, ports
from factory_server.core.errors import Unavailable
from factory_server.core.line import Line
from factory_server.core.sandbox import Driver
from factory_server.core.secrets import Secrets
from factory_server.core.skill_ports import SkillVault
from factory_server.core.skills import Pack
from factory_server.core.vector_index import VectorIndex
from factory_server.services.hub import Hub
from factory_server.services.images import Images
from factory_server.services.measures import Measures
from hyperfactory.v1 import crew_service_pb2

ACTOR = "factory"
"""Who acts where no caller does, as events name it."""


def utc_now() -> datetime:
    """The wall clock; it is the database's where both run on one host, and kept near it by NTP elsewhere."""
    return datetime.now(UTC)


class NoEgress:
    """A factory without a way out: crews that wish one are not served."""

    async def open(self, crew: str, _network: crew_service_pb2.CrewNetwork) -> str:
        """Never."""
        raise Unavailable(f"this factory has no way out for {crew}")

    async def close(self, _crew: str) -> None:
        """Nothing is open."""

    async def list_crews(self) -> Sequence[str]:
        """Nothing is open."""
        return ()


class NoSecrets:
    """A factory that holds none."""

    async def read(self, _names: Iterable[str]) -> Mapping[str, str]:
        """Nothing is found."""
        return {}


class NoSkills:
    """A factory that has no keys for skill packs: none is taken, none is mounted."""

    def sign(self, _digest: str) -> tuple[str, bytes]:
        """Never."""
        raise Unavailable("this factory takes no skill packs")

    def verify(self, _digest: str, _key_id: str, _signature: bytes) -> bool:
        """Nobody's signature is known."""
        return False

    async def place(self, pack: Pack, _content: Callable[[], Awaitable[bytes]]) -> str:
        """Never."""
        raise Unavailable(f"this factory cannot lay out skill pack '{pack.ref}'")


@dataclass(frozen=True, slots=True)
class Parts:
    """The ports behind the use cases. `owner` names this process in leases."""

    store: ports.Store
    bus: ports.Bus
    driver: Driver
    identities: ports.Identities
    open_line: Callable[[str], Line]
    owner: str
    hub: Hub = field(default_factory=Hub)
    measures: Measures = field(default_factory=Measures)
    now: Callable[[], datetime] = utc_now
    entropy: Callable[[int], bytes] = os.urandom
    egress: ports.Egress = field(default_factory=NoEgress)
    secrets: Secrets = field(default_factory=NoSecrets)
    skills: SkillVault = field(default_factory=NoSkills)
    cells: tuple[int, int] = (0, 0)
    """So many networks wait with so many members each."""
    vector_index: VectorIndex | None = None
    """None: every search of vectors compares all."""
    doorsteps: str = ""
    """Directory of sockets at which mates wake members that hibernate; '' for none."""
    images: Images = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", Images(self.driver))  # frozen

    def new_id(self, prefix: str) -> str:
        """A new id of this kind."""
        return ids.make_id(prefix, int(self.now().timestamp() * 1000), self.entropy(5))
