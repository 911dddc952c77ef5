"""How large a crew's network is, who gets one, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_server.core import networks
from factory_server.core.errors import Exhausted, Invalid
from factory_server.core.networks import NetworkLimits, NetworkUse, NetworkWish
from hyperfactory.v1 import crew_service_pb2 as pb
from hyperfactory.v1 import types_pb2

LIMITS = NetworkLimits(networks_max=10, addresses_max=256, instances_max=50)


@pytest.mark.parametrize(
    ("members", "prefix"),
    [(1, 28), (10, 28), (11, 27), (23, 27), (24, 26), (48, 26), (49, 25), (100, 25), (101, 24), (202, 24)],
)
def test_a_network_is_as_small_as_the_crew_allows(members: int, prefix: int) -> None:
    assert networks.prefix_for(members) == prefix


@given(st.integers(1, 202))
def test_there_is_room_to_replace_a_quarter(members: int) -> None:
    room = networks.addresses(networks.prefix_for(members)) - networks.RESERVED_ADDRESSES
    assert room >= members + max(2, members / 4)


def test_a_crew_that_fits_no_network_is_told_the_field_and_the_size() -> None:
    with pytest.raises(Invalid) as caught:
        networks.prefix_for(203)
    assert caught.value.violations[0].field == "manifest.members"
    assert "at most 202" in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "ports", "wished"),
    [
        (pb.NETWORK_MODE_UNSPECIFIED, [], False),
        (pb.NETWORK_MODE_UNSPECIFIED, [8080], True),
        (pb.NETWORK_MODE_SOCKETS, [8080], False),
        (pb.NETWORK_MODE_BRIDGE, [], True),
    ],
)
def test_who_gets_a_network(mode: pb.NetworkMode, ports: list[int], wished: bool) -> None:
    manifest = pb.CrewManifest(network=pb.CrewNetwork(mode=mode))
    specs = [types_pb2.ProfileSpec(), types_pb2.ProfileSpec(tcp_ports=ports)]
    assert networks.wished(manifest, specs) is wished


@pytest.mark.parametrize(
    ("use", "quota"),
    [
        (NetworkUse(10, 0, 0), "networks"),
        (NetworkUse(0, 241, 0), "addresses"),
        (NetworkUse(0, 0, 46), "sandboxes"),
    ],
)
def test_what_the_host_has_no_room_for_is_refused_with_its_quota(use: NetworkUse, quota: str) -> None:
    wish = NetworkWish(28, 5, LIMITS)
    networks.admit(wish, NetworkUse(9, 240, 45))
    with pytest.raises(Exhausted) as caught:
        networks.admit(wish, use)
    assert caught.value.quota == quota
