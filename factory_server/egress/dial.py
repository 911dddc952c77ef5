"""Find a name's addresses, check them all, and connect to one of those that were checked: never by name."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from factory_server.core import egress
from factory_server.egress.head import Denial
from factory_server.egress.limits import ADDRESSES_MAX, CHUNK_BYTES, EgressLimits

Resolve = Callable[[str], Sequence[str]]
"""The addresses of a name; it may block. Raises OSError."""
Unfit = Callable[[Sequence[str]], egress.Refusal | None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def resolve_by_system(host: str) -> Sequence[str]:
    """As the host's resolver says."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def unfit_by_default(addresses: Sequence[str]) -> egress.Refusal | None:
    """Refuse what is not public, and this host's own addresses, which may be: they lead to its own services."""
    refusal = egress.unfit(addresses)
    if refusal is None and any(is_own(address) for address in addresses):
        return egress.Refusal("ADDRESS_NOT_PUBLIC", "the host does not lead to the public internet")
    return refusal


def is_own(address: str) -> bool:
    """Whether this host has the address: only then can a socket be bound to it."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        # A host without IPv6 has no such address, and cannot reach one.
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


class Dialler:
    """Leads one crew out."""

    def __init__(
        self, threads: ThreadPoolExecutor, resolve: Resolve, unfit: Unfit, limits: EgressLimits
    ) -> None:
        self._threads = threads
        self._resolve = resolve
        self._unfit = unfit
        self._limits = limits
        self._lookups = asyncio.Semaphore(limits.crew_lookups)

    async def __call__(self, target: egress.Target) -> Streams:
        """A connection to the target. Raises Denial."""
        addresses = await self._addresses(target.host)
        if refusal := self._unfit(addresses):
            raise Denial(403, refusal.reason, refusal.message)
        try:
            async with asyncio.timeout(self._limits.connect_s):
                return await _first(addresses[:ADDRESSES_MAX], target.port)
        except TimeoutError as error:
            raise Denial(504, "HOST_SILENT", "the host did not answer in time") from error
        except OSError as error:
            raise Denial(502, "HOST_UNREACHABLE", "the host cannot be reached") from error

    async def _addresses(self, host: str) -> Sequence[str]:
        try:
            async with asyncio.timeout(self._limits.lookup_s):
                await self._lookups.acquire()
                looking = asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host)
                # The place is free when the lookup has ended, however long we wait for it.
                looking.add_done_callback(self._looked)
                return await asyncio.shield(looking)
        except TimeoutError as error:
            raise Denial(504, "HOST_UNRESOLVED", "the host's name could not be resolved in time") from error
        except OSError as error:
            raise Denial(502, "HOST_UNRESOLVED", "the host's name cannot be resolved") from error

    def _looked(self, looking: asyncio.Future[Sequence[str]]) -> None:
        self._lookups.release()
        if not looking.cancelled():
            looking.exception()  # told to whoever still waits


async def _first(addresses: Sequence[str], port: int) -> Streams:
    """A connection to the first address that answers."""
    trouble = OSError("no address")
    for address in addresses:
        try:
            # A numeric address is not looked up again.
            return await asyncio.open_connection(address, port, limit=CHUNK_BYTES)
        except OSError as error:
            trouble = error
    raise trouble
