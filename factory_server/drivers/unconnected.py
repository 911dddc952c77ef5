"""What a driver answers that has no networks: its crews meet at sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from factory_server.core.errors import Refused
from factory_server.core.networks import CREW_NETWORKS, Network, NetworkLimits, NetworkSpec
from factory_server.core.sandbox import Enforcement, Property


class NoNetworks:
    """Implements `core.networks.Networks` for a driver without any."""

    def __init__(self, driver: str) -> None:
        self._driver = driver

    @property
    def finding(self) -> Property:
        """For `probe`."""
        return Property(CREW_NETWORKS, Enforcement.ABSENT, "crews meet at unix sockets; there is no network")

    async def limits(self) -> NetworkLimits:
        """None are offered."""
        self._refuse()

    async def create(self, spec: NetworkSpec, *, deadline_s: float) -> Network:
        """None can be made."""
        self._refuse()

    async def list(self) -> Sequence[Network]:
        """There are none."""
        return ()

    async def join(self, instance: str, network: str, names: Sequence[str], *, deadline_s: float) -> str:
        """None can be joined."""
        self._refuse()

    async def tell(self, instance: str, names: Mapping[str, str]) -> None:
        """Nobody has an address."""
        self._refuse()

    async def destroy(self, network: str) -> None:
        """There is none."""

    def _refuse(self) -> NoReturn:
        raise Refused(
            f"the driver '{self._driver}' has no networks: leave network.mode out, or use the driver 'docker'",
            metadata={"driver": self._driver, "property": CREW_NETWORKS},
        )
