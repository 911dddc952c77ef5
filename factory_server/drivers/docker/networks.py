"""Crews' networks as internal bridges of the engine: one queue for everything that is done to them.

The engine serialises these calls anyway, and is slower when they meet. The queue is that of the host: processes of
one factory take turns, so that what one has checked, another does not undo.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from factory_server.core.errors import FactoryError, Invalid, NotFound, Refused, Unavailable
from factory_server.core.networks import CREW_NETWORKS, POOL_PREFIX, Network, NetworkLimits, NetworkSpec
from factory_server.core.sandbox import Enforcement, Property
from factory_server.drivers import CREW_NETWORKS as ADDRESS_POOL
from factory_server.drivers.docker import bridges, directories
from factory_server.drivers.docker.bridges import Bridge
from factory_server.drivers.docker.engine import Client, Lane
from factory_server.drivers.docker.fence import Fence, FenceError
from factory_server.drivers.docker.host import Host
from factory_server.drivers.docker.roster import Living

log = logging.getLogger("factory.docker")

NETWORKS_MAX: Final = 500
INSTANCE_BYTES: Final = 20 * 1024 * 1024  # of memory, measured: an idle agent with all that belongs to it
CHECK_S: Final = 5.0
FRESH_S: Final = 1.0
"""So long a look at the rules is believed."""
CALL_MAX_S: Final = 20.0

T = TypeVar("T")


class DockerNetworks:
    """Implements `core.networks.Networks`."""

    def __init__(
        self,
        host: Host,
        find: Callable[[str], Awaitable[Living]],
        *,
        pool: str = ADDRESS_POOL,
        networks_max: int = NETWORKS_MAX,
    ) -> None:
        self._host = host
        self._find = find
        self._base = _pool(pool)
        self._networks_max = networks_max
        self._fence = Fence(bridges.bridges_of(host.factory))
        self._known: dict[str, frozenset[str]] = {}
        self._bridges: dict[str, Bridge] = {}
        self._there: list[str] = []
        self._slow = asyncio.Lock()
        self._joining = asyncio.Lock()
        self._lock = -1
        self._in_use = True  # until a look tells otherwise
        self._checked_at = float("-inf")

    def open(self) -> None:
        """Take part in the host's queue; blocking, as the state's directory is there."""
        path = self._host.files.where.state / "networks.lock"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Leave the queue."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def limits(self) -> NetworkLimits:
        """What there is room for."""
        try:
            await self._call(self._look, "close crews' networks")
        except Unavailable as error:
            raise Refused(
                f"cannot give a crew a network: {error}", metadata={"property": CREW_NETWORKS}
            ) from error
        memory = int(self._host.info.get("MemTotal") or 0)
        return NetworkLimits(self._networks_max, self._base.num_addresses, memory // INSTANCE_BYTES)

    async def create(self, spec: NetworkSpec, *, deadline_s: float) -> Network:
        """Make or find it, then look whether it is closed; one that is not does not stay."""
        self._in_use = True
        async with self._slow:  # so that whoever joins waits for one of these at most
            return await self._call(
                lambda c: self._make(c, spec), f"create network '{spec.network}'", deadline_s
            )

    async def list(self) -> Sequence[Network]:
        """Every network of this factory."""
        factory = self._host.factory
        there = await self._host.engine.read(lambda c: bridges.listed(c, factory), what="list networks")
        return [Network(bridge.network, bridge.subnet) for bridge in there]

    async def join(self, instance: str, network: str, names: Sequence[str], *, deadline_s: float) -> str:
        """Attach its container."""
        container = (await self._find(instance)).sandbox.container_id
        async with self._joining:  # a large crew waits here, not for an answer of the engine
            return await self._call(
                lambda c: self._attach(c, container, network, names),
                f"join '{instance}' to '{network}'",
                deadline_s,
            )

    async def tell(self, instance: str, names: Mapping[str, str]) -> None:
        """Write its /etc/hosts, which is read anew at each look for a name."""
        await self._find(instance)
        try:
            await self._host.in_thread(directories.write_hosts, self._host.files, instance, names)
        except FileNotFoundError:
            return  # made by an earlier version: it has the engine's names alone
        except OSError as error:
            raise Unavailable(f"cannot tell '{instance}' names: {error}") from error

    async def destroy(self, network: str) -> None:
        """Remove it; with the last one the rules go, too."""
        async with self._slow:
            await self._call(lambda c: self._remove(c, network), f"destroy network '{network}'")

    # For the driver

    async def watch(self) -> None:
        """Look at the rules now and then, as long as there are networks, until cancelled."""
        while True:
            try:
                if self._in_use:
                    await self._call(self._check, "close crews' networks")
            except FactoryError as error:
                log.warning(
                    "crews' networks may be open", extra={"action": "network.fence", "error": str(error)}
                )
            await asyncio.sleep(CHECK_S)

    async def try_out(self) -> Property:
        """Make one and look: the engine may have its networks elsewhere, or we may not write rules."""
        name = f"probe-{secrets.token_hex(4)}"
        try:
            await self.create(NetworkSpec(name, POOL_PREFIX), deadline_s=CALL_MAX_S)
        except FactoryError as error:
            return Property(CREW_NETWORKS, Enforcement.ABSENT, str(error))
        finally:
            with contextlib.suppress(FactoryError):
                await self.destroy(name)
        return Property(CREW_NETWORKS, Enforcement.ENFORCED)

    async def remove_all(self) -> None:
        """Every network and rule of this factory; its containers are gone."""
        there = {network.network for network in await self.list()}
        for network in there or {""}:
            await self.destroy(network)

    # In the lane's thread

    async def _call(self, action: Callable[[Client], T], what: str, deadline_s: float = CALL_MAX_S) -> T:
        def alone(client: Client) -> T:
            with self._turn():
                return action(client)

        try:
            return await self._host.engine.call(Lane.NETWORK, alone, what=what, deadline_s=deadline_s)
        except FenceError as error:
            raise Unavailable(f"cannot {what}: {error}") from error

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._lock < 0:
            raise Unavailable("this driver is not open")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _look(self, client: Client) -> None:
        """Whoever asks may be given a network whose members are there already: as long as the rules stand for
        the bridges that we know, the engine is not asked."""
        if not self._there or not self._fence.stands(self._there):
            self._check(client, coming=True)

    def _check(self, client: Client, *, coming: bool = False) -> None:
        """Have the rules stand for the bridges that are there, and where one is `coming` even without any."""
        there = self._there = [bridge.bridge for bridge in bridges.listed(client, self._host.factory)]
        known, self._in_use = self._in_use, bool(there) or coming
        if not self._in_use and known:
            self._fence.lift()
        elif self._in_use and self._fence.assure(there) and known and not coming:
            log.warning(
                "rules that close crews' networks were written anew", extra={"action": "network.fence"}
            )
        self._checked_at = time.monotonic()

    def _make(self, client: Client, spec: NetworkSpec) -> Network:
        factory = self._host.factory
        bridge = bridges.make(client, factory, spec.network, spec.prefix, spec.labels, self._base)
        try:
            _check_place(bridge.bridge)
            self._check(client, coming=True)
        except FenceError:
            bridges.remove(client, bridge)
            raise
        self._bridges[spec.network] = bridge
        return Network(bridge.network, bridge.subnet)

    def _attach(self, client: Client, container: str, network: str, names: Sequence[str]) -> str:
        bridge = self._bridges.get(network) or bridges.found(client, self._host.factory, network)
        if bridge is None:
            raise NotFound(f"no network '{network}'", resource_type="network", resource_name=network)
        if time.monotonic() - self._checked_at > FRESH_S:
            self._check(client)
        self._bridges.pop(network, None)  # it stays known only if it is there
        address = bridges.attach(client, bridge, container, names, self._known)
        self._bridges[network] = bridge
        return address

    def _remove(self, client: Client, network: str) -> None:
        self._bridges.pop(network, None)
        left = bridges.listed(client, self._host.factory)
        for bridge in [bridge for bridge in left if bridge.network == network]:
            bridges.remove(client, bridge)
            left.remove(bridge)
        if not left:
            self._known.clear()
            self._in_use, self._there = False, []
            self._fence.lift()


def _check_place(bridge: str) -> None:
    """Rules are written where this process is: no use where the engine is elsewhere."""
    try:
        socket.if_nametoindex(bridge)  # not by /sys, which may be of another network
    except OSError as error:
        raise FenceError("the engine's bridges are not in this process's network") from error


def _pool(text: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as error:
        raise Invalid(f"cannot give crews' networks addresses of '{text}': {error}") from error
