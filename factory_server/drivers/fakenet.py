"""Networks of the fake driver: who is in which, by which names; verified by the drivers' suite."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from factory_server.core.errors import Exhausted, NotFound
from factory_server.core.networks import Network, NetworkLimits, NetworkSpec

POOL = ipaddress.IPv4Network("10.213.0.0/16")
Weather = Callable[[str, str], Awaitable[None]]


class Told(Protocol):
    """An instance that is told names."""

    names: Mapping[str, str]


@dataclass(eq=False)
class FakeNetwork:
    """One network: its members' addresses and names, by instance."""

    subnet: ipaddress.IPv4Network
    members: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        """The address behind a name that came with a `join`; '' for none."""
        return next((address for address, names in self.members.values() if name in names), "")

    def join(self, instance: str, network: str, names: frozenset[str]) -> str:
        """Give it an address, and take the names from whoever had them."""
        for other, (_, held) in list(self.members.items()):
            if other != instance and held & names:
                del self.members[other]
        if instance not in self.members:
            taken = {address for address, _ in self.members.values()}
            hosts = (str(host) for host in list(self.subnet.hosts())[1:])
            address = next((host for host in hosts if host not in taken), "")
            if not address:
                raise Exhausted(f"network '{network}' has no address left", quota="addresses")
            self.members[instance] = address, names
        return self.members[instance][0]


@dataclass(eq=False)
class FakeNetworks:
    """Implements `core.networks.Networks` on what a fake host keeps."""

    there: dict[str, FakeNetwork]
    alive: Callable[[str], Told]
    face_weather: Weather
    most: NetworkLimits = field(default_factory=lambda: NetworkLimits(500, POOL.num_addresses, 10_000))

    async def limits(self) -> NetworkLimits:
        """As it was made."""
        await self.face_weather("limits", "")
        return self.most

    async def create(self, spec: NetworkSpec, *, deadline_s: float) -> Network:
        """Take the first free subnet."""
        await self.face_weather("create_network", spec.network)
        if spec.network not in self.there:
            taken = [network.subnet for network in self.there.values()]
            free = (s for s in POOL.subnets(new_prefix=spec.prefix) if not any(s.overlaps(t) for t in taken))
            subnet = next(free, None)
            if subnet is None:
                raise Exhausted(f"cannot create network '{spec.network}'", quota="addresses")
            self.there[spec.network] = FakeNetwork(subnet)
        return Network(spec.network, str(self.there[spec.network].subnet))

    async def list(self) -> Sequence[Network]:
        """What is there."""
        await self.face_weather("list_networks", "")
        return [Network(name, str(network.subnet)) for name, network in self.there.items()]

    async def join(self, instance: str, network: str, names: Sequence[str], *, deadline_s: float) -> str:
        """Become a member."""
        await self.face_weather("join", instance)
        self.alive(instance)
        found = self.there.get(network)
        if found is None:
            raise NotFound(f"no network '{network}'", resource_type="network", resource_name=network)
        return found.join(instance, network, frozenset(names))

    async def tell(self, instance: str, names: Mapping[str, str]) -> None:
        """Note them."""
        await self.face_weather("tell", instance)
        self.alive(instance).names = dict(names)

    async def destroy(self, network: str) -> None:
        """Forget it."""
        await self.face_weather("destroy_network", network)
        self.there.pop(network, None)
