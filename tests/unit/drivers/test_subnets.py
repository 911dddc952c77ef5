"""Which subnet is free, beside what others took."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from factory_server.drivers.docker import subnets

Net = ipaddress.IPv4Network
BASE = Net("10.213.0.0/20")
TABLE = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    "tun0\t0000D50A\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0\n"
)


def test_routes_are_read_but_for_the_default() -> None:
    assert subnets.routed(TABLE) == [Net("192.0.2.0/24"), Net("10.213.0.0/20")]


def test_a_base_that_is_routed_elsewhere_has_nothing_free() -> None:
    assert subnets.free(BASE, 28, subnets.routed(TABLE)) is None


def test_it_looks_around_from_where_it_starts() -> None:
    last = BASE.num_addresses // 16 - 1
    assert subnets.free(BASE, 28, [], start=last) == Net("10.213.15.240/28")
    assert subnets.free(BASE, 28, [Net("10.213.15.240/28")], start=last) == Net("10.213.0.0/28")


@given(
    st.lists(st.tuples(st.integers(0, 2**14 - 1), st.integers(18, 30)), max_size=40),
    st.integers(24, 28),
    st.integers(0, 500),
)
def test_what_is_given_overlaps_nothing_and_nothing_free_is_missed(
    places: list[tuple[int, int]], prefix: int, start: int
) -> None:
    first = int(Net("10.212.240.0").network_address)
    taken = [Net((first + offset, size), strict=False) for offset, size in places]
    found = subnets.free(BASE, prefix, taken, start=start)
    open_ones = [s for s in BASE.subnets(new_prefix=prefix) if not any(s.overlaps(t) for t in taken)]
    assert found in open_ones if open_ones else found is None
