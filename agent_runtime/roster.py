"""Who is in the crew now, as the factory last said; the runtime's view of its mates and their generations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from agent_runtime.limits import PEERS_MAX
from hyperfactory.v1 import agent_service_pb2 as pb
from wire.errors import Exhausted, NotFound


class Mate(NamedTuple):
    """One member of the crew."""

    agent: str
    name: str
    generation: int
    group: str
    profile: str
    frozen_ns: int = 0
    """Since when it is frozen; 0: it is not."""


class Roster:
    """Members by name; an older revision never replaces a newer one."""

    def __init__(self) -> None:
        self._mates: dict[str, Mate] = {}
        self.revision = 0

    def __iter__(self) -> Iterator[Mate]:
        return iter(sorted(self._mates.values(), key=lambda mate: mate.name))

    def __len__(self) -> int:
        return len(self._mates)

    def get(self, name: str) -> Mate | None:
        return self._mates.get(name)

    def require(self, name: str) -> Mate:
        mate = self._mates.get(name)
        if mate is None:
            raise NotFound(f"no '{name}' in this crew", resource_type="agent", resource_name=name)
        return mate

    def group(self, group: str) -> list[Mate]:
        """The members of one group, by name."""
        return [mate for mate in self if mate.group == group]

    def apply(self, message: pb.Roster) -> bool:
        """Take a roster over unless it is older than ours; tells whether it was taken."""
        if message.revision < self.revision:
            return False
        if len(message.peers) > PEERS_MAX:
            raise Exhausted(f"a roster has at most {PEERS_MAX} peers", quota="peers")
        self.revision = message.revision
        self._mates = {
            peer.name: Mate(
                peer.agent,
                peer.name,
                peer.generation,
                peer.group,
                peer.profile,
                peer.frozen_time.ToNanoseconds(),
            )
            for peer in message.peers
        }
        return True
