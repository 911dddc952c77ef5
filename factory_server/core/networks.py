"""Crews' own networks: who wishes one, how large it is, what a driver offers, and what is kept of it.

A network is closed: its members reach each other by name, and nothing else. Whoever hands one out has checked
that at that moment, and does not hand it out where it cannot be checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from factory_server.core.errors import Exhausted, FieldViolation, Invalid
from hyperfactory.v1 import crew_service_pb2, types_pb2

PREFIXES: Final = range(28, 23, -1)
"""Smallest network first; a larger one than /24 would be no crew's any more."""
ADDRESS_BITS: Final = 32
RESERVED_ADDRESSES: Final = 3
"""The network's own, its gateway's, and that of broadcasts."""
HEADROOM_SHARE: Final = 4
HEADROOM_MIN: Final = 2
"""A member that is being replaced has two addresses: a quarter of a crew may, or two of a small one."""
POOL_PREFIX: Final = PREFIXES[0]
CREW_NETWORKS: Final = "crew_networks"
"""The property by which a driver tells whether it has networks; sandboxes without any are no weaker for it."""


class NetworkState(StrEnum):
    """Where a network is: intent first, then effect. READY ones wait for a crew."""

    STARTING = "STARTING"
    READY = "READY"
    OWNED = "OWNED"
    DYING = "DYING"


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One network, wished or existing; `crew` is empty while it waits for one."""

    id: str
    prefix: int
    state: NetworkState
    crew: str = ""
    subnet: str = ""
    members: int = 0
    """So many warm instances wait in it: it is a cell."""


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """What a driver's host has room for."""

    networks_max: int
    addresses_max: int
    instances_max: int


@dataclass(frozen=True, slots=True)
class NetworkUse:
    """What is taken of it, by this factory."""

    networks: int
    addresses: int
    instances: int


@dataclass(frozen=True, slots=True)
class NetworkWish:
    """What a crew needs, and within which limits it may have it."""

    prefix: int
    members: int
    limits: NetworkLimits


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A wish to a driver. `labels` name the owner, for people who look."""

    network: str
    prefix: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Network:
    """A network that exists."""

    network: str
    subnet: str


class Networks(Protocol):
    """A driver's networks. Drivers without any refuse what would need one, with the reason."""

    async def limits(self) -> NetworkLimits:
        """What there is room for; Refused where this driver has no networks, or cannot close them."""

    async def create(self, spec: NetworkSpec, *, deadline_s: float) -> Network:
        """Return the network of this name, made now or found, and closed now. Unavailable where it cannot be
        closed, Exhausted where no addresses are left."""

    async def list(self) -> Sequence[Network]:
        """Every network of this factory."""

    async def join(self, instance: str, network: str, names: Sequence[str], *, deadline_s: float) -> str:
        """Make a running instance a member and return its address; from here on its mates reach it by these names.

        The deadline counts from its turn. An earlier holder of one of the names is a member no more. Repeats are
        harmless. NotFound where either does not exist, Exhausted where no address is left, Unavailable where the
        network is not closed now.
        """

    async def tell(self, instance: str, names: Mapping[str, str]) -> None:
        """Have exactly these names lead to these addresses in the instance, before any that `join` gave; no call
        to an engine. NotFound for an unknown instance."""

    async def destroy(self, network: str) -> None:
        """Remove the network; members that live lose it. Harmless for an unknown one."""


class NetworkStore(Protocol):
    """Networks as rows. `CrewStore.assemble` takes or intends one where the plan wishes it."""

    async def network_use(self) -> NetworkUse:
        """What is taken."""

    async def plan_network(
        self, prefix: int, target: int, wish: NetworkWish, maker: str = ""
    ) -> NetworkRow | None:
        """Intend one for the pool where fewer than `target` of this size are STARTING or READY and the limits
        allow it, under one lock, so that several processes never overfill; None where it is full. With members
        it is a cell, which are counted by themselves; crews are given cells first."""

    async def network_started(self, network: str, subnet: str) -> NetworkRow | None:
        """It exists: STARTING → OWNED where it has a crew, or READY. None where it is not wished any more."""

    async def crew_network(self, crew: str) -> NetworkRow | None:
        """The crew's own, wished or existing."""

    async def list_networks(self) -> Sequence[NetworkRow]:
        """All rows."""

    async def release_networks(self, networks: Sequence[str]) -> None:
        """Mark networks DYING, from whatever state, with the instances that waited in them."""

    async def forget_network(self, network: str) -> None:
        """It is destroyed: delete its row."""

    async def record_address(self, instance: str, address: str) -> None:
        """Note where an instance is on its crew's network; '' where it is not. Unknown ids are fine."""


def wished(manifest: crew_service_pb2.CrewManifest, specs: Sequence[types_pb2.ProfileSpec]) -> bool:
    """Whether the crew gets a network beside its sockets."""
    match manifest.network.mode:
        case crew_service_pb2.NETWORK_MODE_BRIDGE:
            return True
        case crew_service_pb2.NETWORK_MODE_SOCKETS:
            return False
        case _:
            return any(spec.tcp_ports for spec in specs)


def addresses(prefix: int) -> int:
    """How many addresses a network of this size takes."""
    return 1 << (ADDRESS_BITS - prefix)


def members_max(prefix: int) -> int:
    """The largest crew that a network of this size holds while it replaces members."""
    room = addresses(prefix) - RESERVED_ADDRESSES
    return max(n for n in range(room) if n + _headroom(n) <= room)


def _headroom(members: int) -> int:
    return max(HEADROOM_MIN, -(-members // HEADROOM_SHARE))


def prefix_for(members: int) -> int:
    """The smallest network for so many. Invalid where even the largest is too small."""
    for prefix in PREFIXES:
        if members <= members_max(prefix):
            return prefix
    most = members_max(PREFIXES[-1])
    wrong = FieldViolation(
        "manifest.members", f"wishes {members} agents, a crew's network holds at most {most}", "TOO_MANY"
    )
    raise Invalid(f"cannot assemble crew: {wrong.field}: {wrong.description}", violations=[wrong])


def admit(wish: NetworkWish, use: NetworkUse) -> None:
    """Refuse what the host has no room for. Exhausted, with the quota."""
    limits = wish.limits
    wants = (
        ("networks", use.networks + 1, limits.networks_max),
        ("addresses", use.addresses + addresses(wish.prefix), limits.addresses_max),
        ("sandboxes", use.instances + wish.members, limits.instances_max),
    )
    for quota, needed, most in wants:
        if needed > most:
            raise Exhausted(
                f"cannot give the crew a network: that would be {needed} {quota}, at most {most} are allowed",
                quota=quota,
            )


def names_of(agent: str, crew: str) -> tuple[str, ...]:
    """What a member's mates call it."""
    return (agent, f"{agent}.crew-{crew}.svc")
