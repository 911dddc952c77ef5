"""Choose a free subnet for a crew, beside everything that this host has a route or a network for."""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROUTES: Final = Path("/proc/net/route")
_DESTINATION, _MASK = 1, 7

Subnet = ipaddress.IPv4Network


def free(base: Subnet, prefix: int, taken: Iterable[Subnet], *, start: int = 0) -> Subnet | None:
    """The first subnet of this size that overlaps none, looking from place `start` on and around; None if none."""
    size = 1 << (base.max_prefixlen - prefix)
    first, count = int(base.network_address), base.num_addresses // size
    spans = _joined(taken)
    begins = [begin for begin, _ in spans]
    for step in range(count):
        address = first + ((start + step) % count) * size
        before = bisect_right(begins, address + size - 1) - 1
        if before < 0 or spans[before][1] < address:
            return Subnet((address, prefix))
    return None


def _joined(taken: Iterable[Subnet]) -> list[tuple[int, int]]:
    """First and last addresses, in order, none inside another."""
    spans: list[tuple[int, int]] = []
    for begin, end in sorted((int(n.network_address), int(n.broadcast_address)) for n in taken):
        if spans and begin <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], end)
        else:
            spans.append((begin, end))
    return spans


def routed(table: str) -> list[Subnet]:
    """The destinations of the kernel's table of routes, but for the default one."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        destination, mask = (_address(fields[place]) for place in (_DESTINATION, _MASK))
        if int(mask):
            found.append(Subnet(f"{destination}/{mask}", strict=False))
    return found


def _address(text: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(bytes.fromhex(text)[::-1])
