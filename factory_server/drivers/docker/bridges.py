"""The engine's verbs on networks, blocking, each harmless to repeat; run in the one thread of their lane."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from docker.errors import APIError
from docker.errors import NotFound as NoSuchThing
from docker.types import IPAMConfig, IPAMPool

from factory_server.core.errors import Exhausted, NotFound
from factory_server.drivers.docker import subnets
from factory_server.drivers.docker.engine import Client
from factory_server.drivers.docker.hardening import LABEL_FACTORY, LABEL_GIVEN

LABEL_NETWORK: Final = "hyperfactory.network"
BRIDGE_OPTION: Final = "com.docker.network.bridge.name"
BRIDGE_PREFIX: Final = "hfc"
_FACTORY_CHARS: Final = 4
_NETWORK_CHARS: Final = 8
_OVERLAP_TRIES: Final = 8
_BUSY_TRIES: Final = 50
_BUSY_POLL_S: Final = 0.02
_NO_NETWORK: Final = "none"


@dataclass(frozen=True, slots=True)
class Bridge:
    """A network as the engine lists it."""

    id: str
    name: str
    network: str
    bridge: str
    subnet: str


def _short(text: str, chars: int) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:chars]


def bridges_of(factory: str) -> str:
    """The beginning of the names of a factory's bridges."""
    return BRIDGE_PREFIX + _short(factory, _FACTORY_CHARS)


def bridge_of(factory: str, network: str) -> str:
    """The name of a network's bridge: as long as an interface's name may be."""
    return bridges_of(factory) + _short(network, _NETWORK_CHARS)


def listed(client: Client, factory: str) -> list[Bridge]:
    """All of this factory, the oldest first."""
    items = client.networks(filters={"label": f"{LABEL_FACTORY}={factory}"})
    ours = [item for item in items if LABEL_NETWORK in item["Labels"]]
    return [_bridge(item) for item in sorted(ours, key=lambda item: (item["Created"], item["Id"]))]


def _bridge(item: Mapping[str, Any]) -> Bridge:
    name = item["Options"].get(BRIDGE_OPTION, "")
    return Bridge(item["Id"], item["Name"], item["Labels"][LABEL_NETWORK], name, ",".join(_subnets(item)))


def _subnets(item: Mapping[str, Any]) -> list[str]:
    return [part["Subnet"] for part in (item.get("IPAM") or {}).get("Config") or () if "Subnet" in part]


def found(client: Client, factory: str, network: str) -> Bridge | None:
    """The network of this name; the oldest, should two processes have made it at once."""
    return next((bridge for bridge in listed(client, factory) if bridge.network == network), None)


def make(
    client: Client, factory: str, network: str, prefix: int, labels: Mapping[str, str], base: subnets.Subnet
) -> Bridge:
    """The network of this name, made now or found. Exhausted where the pool of addresses is."""
    present = found(client, factory, network)
    if present is not None:
        return present
    body = {
        "driver": "bridge",
        "internal": True,
        "check_duplicate": True,
        "enable_ipv6": False,
        "options": {BRIDGE_OPTION: bridge_of(factory, network)},
        "labels": {
            LABEL_FACTORY: factory,
            LABEL_NETWORK: network,
            LABEL_GIVEN: json.dumps(dict(labels), sort_keys=True),
        },
    }
    start = int.from_bytes(hashlib.sha256(factory.encode()).digest()[:4])  # so that factories seldom meet
    for attempt in range(_OVERLAP_TRIES):
        subnet = subnets.free(base, prefix, _taken(client), start=start + attempt)
        if subnet is None:
            raise Exhausted(
                f"cannot create network '{network}': no /{prefix} of {base} is free", quota="addresses"
            )
        ipam = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet))])
        try:
            client.create_network(f"hf-{factory}-{network}", ipam=ipam, **body)
        except APIError as error:
            if "overlap" not in str(error.explanation or "").lower():
                raise
        else:
            break
    present = found(client, factory, network)
    if present is None:
        raise Exhausted(
            f"cannot create network '{network}': its addresses were taken each time", quota="addresses"
        )
    return present


def _taken(client: Client) -> list[subnets.Subnet]:
    texts = [text for item in client.networks() for text in _subnets(item)]
    known = [ipaddress.ip_network(text, strict=False) for text in texts]
    routes = subnets.routed(subnets.ROUTES.read_text())
    return [net for net in known if isinstance(net, ipaddress.IPv4Network)] + routes


def attach(
    client: Client,
    bridge: Bridge,
    container: str,
    names: Sequence[str],
    known: MutableMapping[str, frozenset[str]],
) -> str:
    """Make a running container the one holder of these names, and return its address. `known` remembers names."""
    present = _endpoints(client, container)
    there = present.get(bridge.name)
    if not (there and there["IPAddress"]):
        _evict(client, bridge, container, frozenset(names), known)
        if _NO_NETWORK in present:
            _detach(client, container, _NO_NETWORK)
        _connect(client, bridge, container, names)
        there = _endpoints(client, container)[bridge.name]
    known[container] = frozenset(names)
    address: str = there["IPAddress"]
    return address


def _connect(client: Client, bridge: Bridge, container: str, names: Sequence[str]) -> None:
    try:
        client.connect_container_to_network(container, bridge.id, aliases=list(names))
    except APIError as error:
        if "no available ipv4" in str(error.explanation or "").lower():
            raise Exhausted(f"network '{bridge.network}' has no address left", quota="addresses") from error
        raise


def _endpoints(client: Client, container: str) -> Mapping[str, Any]:
    told: Mapping[str, Any] = client.inspect_container(container)["NetworkSettings"]["Networks"]
    return told


def _evict(
    client: Client,
    bridge: Bridge,
    container: str,
    names: frozenset[str],
    known: MutableMapping[str, frozenset[str]],
) -> None:
    """Whoever else holds one of the names is a member no more."""
    members = _members(client, bridge)
    for other in members:
        if other == container:
            continue
        if other not in known:
            known[other] = _names(client, bridge, other)
        if known[other] & names:
            _detach(client, other, bridge.id)


def _names(client: Client, bridge: Bridge, container: str) -> frozenset[str]:
    try:
        return frozenset(_endpoints(client, container).get(bridge.name, {}).get("Aliases") or ())
    except NoSuchThing:
        return frozenset()


def _members(client: Client, bridge: Bridge) -> list[str]:
    try:
        return list(client.inspect_network(bridge.id)["Containers"] or ())
    except NoSuchThing as error:
        raise NotFound(f"no network '{bridge.network}'", resource_type="network") from error


def _detach(client: Client, container: str, network: str) -> None:
    try:
        client.disconnect_container_from_network(container, network, force=True)
    except NoSuchThing:
        return
    except APIError as error:
        if "is not connected" not in str(error.explanation or ""):
            raise


def remove(client: Client, bridge: Bridge) -> None:
    """Part its members from it and remove it; returns when the engine knows it no more."""
    for left in reversed(range(_BUSY_TRIES)):
        try:
            for container in client.inspect_network(bridge.id)["Containers"] or ():
                _detach(client, container, bridge.id)
            client.remove_network(bridge.id)
        except NoSuchThing:
            return
        except APIError as error:
            if not left or "active endpoints" not in str(error.explanation or ""):
                raise
            threading.Event().wait(_BUSY_POLL_S)
        else:
            return
