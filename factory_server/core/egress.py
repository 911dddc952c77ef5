"""Decide whether a crew may connect to a host and port: by the name it gives, then by what the name means.

A name is matched and dialled in one normal form, so that what was checked is what is connected to. Addresses
in place of names are refused in every spelling: `127.1`, `2130706433` and `0x7f000001` are all loopback to a
resolver.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hyperfactory.v1 import crew_service_pb2

DEFAULT_PORTS: Final = frozenset({80, 443})
HOST_MAX_CHARS: Final = 253
PORT_MAX: Final = 65535

_AUTHORITY: Final = re.compile(r"([^\s:@/?#\\\[\]%]+):([1-9][0-9]{0,4})", re.ASCII)
_PATTERN: Final = re.compile(r"(\*\.)?([^:*]+)(?::([1-9][0-9]{0,4}))?", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)

# `is_global` of Python 3.11 holds for many of these; and what it calls global may change with a release.
_CLOSED_V4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_UNICAST_V6: Final = ipaddress.IPv6Network("2000::/3")
"""All else of IPv6 is closed: mapped, compatible, NAT64, unique local, link-local, site-local, multicast."""
_CLOSED_V6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)  # Teredo and other protocols, documentation, 6to4, AS112, documentation


@dataclass(frozen=True, slots=True)
class Target:
    """Where to: a name in its normal form, and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: a stable reason for programs, a message for people. Neither repeats what was asked."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry of a manifest's list: a host, or (`below`) all hosts below it. Port 0: the default ports."""

    host: str
    below: bool
    port: int

    def names(self, host: str) -> bool:
        """Whether the host is meant."""
        return host.endswith(f".{self.host}") if self.below else host == self.host

    def opens(self, port: int) -> bool:
        """Whether the port is meant."""
        return port == self.port if self.port else port in DEFAULT_PORTS


@dataclass(frozen=True, slots=True)
class Rules:
    """What one crew may reach. Without patterns and `any_host`: nothing."""

    patterns: tuple[Pattern, ...] = ()
    any_host: bool = False

    @classmethod
    def of(cls, network: crew_service_pb2.CrewNetwork) -> Rules:
        """The rules of a manifest; an entry that cannot be read opens nothing."""
        if not network.allow_egress:
            return cls()
        read = (parse_pattern(text) for text in network.egress_hosts)
        return cls(tuple(p for p in read if isinstance(p, Pattern)), any_host=not network.egress_hosts)


def decide(rules: Rules, authority: str) -> Target | Refusal:
    """Whether `host:port` may be resolved; its addresses are checked afterwards, by `unfit`."""
    target = parse_target(authority)
    if isinstance(target, Refusal):
        return target
    patterns = rules.patterns
    if rules.any_host:
        patterns = (Pattern(target.host, below=False, port=0),)
    meant = [pattern for pattern in patterns if pattern.names(target.host)]
    if not meant:
        return Refusal("HOST_NOT_ALLOWED", "the crew's manifest does not allow this host")
    if not any(pattern.opens(target.port) for pattern in meant):
        return Refusal("PORT_NOT_ALLOWED", "the crew's manifest does not allow this port")
    return target


def parse_target(authority: str) -> Target | Refusal:
    """Read `host:port` as a client may give it."""
    if authority.startswith("["):
        return Refusal("ADDRESS_LITERAL", "addresses are refused: give a host name")
    found = _AUTHORITY.fullmatch(authority)
    if found is None or int(found[2]) > PORT_MAX:
        return Refusal("TARGET_MALFORMED", "the target must be host:port")
    host = normal_host(found[1])
    if isinstance(host, Refusal):
        return host
    if "." not in host:
        return Refusal("HOST_NOT_QUALIFIED", "the host must be a name with its domain")
    return Target(host, int(found[2]))


def parse_pattern(text: str) -> Pattern | Refusal:
    """Read one entry of a manifest's list."""
    found = _PATTERN.fullmatch(text)
    if found is None or int(found[3] or 0) > PORT_MAX:
        return Refusal("PATTERN_MALFORMED", "must be host, *.host, or one of them with :port")
    host = normal_host(found[2])
    if isinstance(host, Refusal):
        return host
    if not found[1] and "." not in host:
        return Refusal("HOST_NOT_QUALIFIED", "must be a name with its domain")
    return Pattern(host, below=bool(found[1]), port=int(found[3] or 0))


def normal_host(text: str) -> str | Refusal:
    """The one spelling of a name: ASCII, lower case, no dot at the end."""
    malformed = Refusal("TARGET_MALFORMED", "this is no host name")
    if len(text) > HOST_MAX_CHARS + 1:
        return malformed
    try:
        host = text if text.isascii() else text.encode("idna").decode("ascii")
    except UnicodeError:
        return malformed
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > HOST_MAX_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        return malformed
    if _NUMBER.fullmatch(labels[-1]):
        return Refusal("ADDRESS_LITERAL", "addresses are refused: give a host name")
    return host


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet. What cannot be read does not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return found.is_global and not any(found in network for network in _CLOSED_V4)
    return (
        found in _UNICAST_V6
        and found.is_global
        and found.scope_id is None
        and not any(found in network for network in _CLOSED_V6)
    )


def unfit(addresses: Iterable[str]) -> Refusal | None:
    """Why these addresses of one name must not be dialled: one that is not public spoils them all."""
    found = list(addresses)
    if not found:
        return Refusal("HOST_UNRESOLVED", "the host has no address")
    if not all(is_public(address) for address in found):
        return Refusal("ADDRESS_NOT_PUBLIC", "the host does not lead to the public internet")
    return None
