"""Where a crew may connect: exactly what its manifest names, by name, and never to an address of the inside."""

from __future__ import annotations

import ipaddress

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import example, given
from hypothesis import strategies as st
from some_profiles import PROFILES

from factory_server.core import egress
from factory_server.core.egress import Pattern, Refusal, Rules, Target, decide
from factory_server.core.errors import Invalid
from factory_server.core.manifest import plan_crew
from hyperfactory.v1 import crew_service_pb2


def rules(*hosts: str, allow: bool = True) -> Rules:
    return Rules.of(crew_service_pb2.CrewNetwork(allow_egress=allow, egress_hosts=hosts))


LISTED = rules(
    "api.example.com", "*.cdn.example.com", "git.example.com:8443", "both.example.com", "both.example.com:22"
)

ALLOWED = {
    "api.example.com:443": ("api.example.com", 443),
    "api.example.com:80": ("api.example.com", 80),
    "API.Example.COM:443": ("api.example.com", 443),
    "api.example.com.:443": ("api.example.com", 443),
    "a.cdn.example.com:443": ("a.cdn.example.com", 443),
    "a.b.cdn.example.com:443": ("a.b.cdn.example.com", 443),
    "git.example.com:8443": ("git.example.com", 8443),
    "both.example.com:22": ("both.example.com", 22),
    "both.example.com:443": ("both.example.com", 443),
    "ａｐｉ.example.com:443": ("api.example.com", 443),
}
REFUSED = {
    "cdn.example.com:443": "HOST_NOT_ALLOWED",
    "evilcdn.example.com:443": "HOST_NOT_ALLOWED",
    "xapi.example.com:443": "HOST_NOT_ALLOWED",
    "api.example.com.evil.org:443": "HOST_NOT_ALLOWED",
    "evil.org:443": "HOST_NOT_ALLOWED",
    "аpi.example.com:443": "HOST_NOT_ALLOWED",  # a Cyrillic letter
    "api.example.com:22": "PORT_NOT_ALLOWED",
    "api.example.com:8443": "PORT_NOT_ALLOWED",
    "git.example.com:443": "PORT_NOT_ALLOWED",
    "localhost:443": "HOST_NOT_QUALIFIED",
    "api:443": "HOST_NOT_QUALIFIED",
}
LITERALS = [
    "127.0.0.1:80", "127.1:80", "127.0.0.1.:80", "2130706433:80", "0x7f000001:80", "0x7f.1:80", "0177.0.0.1:80",
    "0:80", "0x:80", "169.254.169.254:80", "2852039166:80", "0xa9fea9fe:80", "0xA9.0376.43518:80",
    "93.184.216.34:443", "999.999.999.999:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "[fe80::1%25eth0]:80",
    "１２７.０.０.１:80", "127。0。0。1:80", "a.0x7f:80", "①②⑦.0.0.1:80",
]  # fmt: skip
MALFORMED = [
    "", ":", "api.example.com", "api.example.com:", ":443", "api.example.com:0", "api.example.com:65536",
    "api.example.com:0443", "api.example.com:+443", "api.example.com:4 43", "api.example.com:443:443",
    "api.example.com:443/", "user@api.example.com:443", "user:x@api.example.com:443", "http://api.example.com:443",
    "api.example.com:443\r\nX: y", "api.example.com\r\n:443", "api.example.com:443\n", "api.example.com\x00:443",
    " api.example.com:443", "api.example.com :443", "api..example.com:443", ".example.com:443",
    "api.example.com..:443", "-api.example.com:443", "api-.example.com:443", f"{'a' * 64}.com:443",
    f"{'a.' * 127}com:443", "api.example.com#:443", "api.example.com?:443", "api\\example.com:443", "*.com:443",
    "api%2eexample.com:443", "::1:80", "fe80::1%eth0:80", "api.example.com:٤٤٣",
]  # fmt: skip


@pytest.mark.parametrize("authority", ALLOWED)
def test_what_is_named_is_allowed_in_its_normal_form(authority):
    assert decide(LISTED, authority) == Target(*ALLOWED[authority])


@pytest.mark.parametrize("authority", REFUSED)
def test_what_is_not_named_is_refused(authority):
    assert decide(LISTED, authority).reason == REFUSED[authority]


@pytest.mark.parametrize("authority", LITERALS)
@pytest.mark.parametrize("where", [LISTED, rules()], ids=["list", "any"])
def test_an_address_is_refused_in_every_spelling(authority, where):
    assert decide(where, authority).reason in {"ADDRESS_LITERAL", "TARGET_MALFORMED"}
    assert isinstance(decide(where, authority), Refusal)


@pytest.mark.parametrize("authority", MALFORMED)
@pytest.mark.parametrize("where", [LISTED, rules()], ids=["list", "any"])
def test_what_is_no_host_and_port_is_refused(authority, where):
    assert isinstance(decide(where, authority), Refusal)


def test_an_empty_list_means_any_host_on_the_default_ports():
    assert decide(rules(), "anything.example.org:443") == Target("anything.example.org", 443)
    assert decide(rules(), "anything.example.org:25").reason == "PORT_NOT_ALLOWED"


def test_without_the_flag_nothing_is_allowed():
    for closed in (Rules(), rules(allow=False), rules("api.example.com", allow=False)):
        assert decide(closed, "api.example.com:443").reason == "HOST_NOT_ALLOWED"


def test_an_entry_that_cannot_be_read_does_not_open_everything():
    for text in ("a..b", "127.0.0.1", "x:99999", "*", "*.*.com", "http://a.b"):
        assert isinstance(egress.parse_pattern(text), Refusal), text
        assert decide(rules(text), "api.example.com:443").reason == "HOST_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a.example", Pattern("a.example", below=False, port=0)),
        ("A.Example.", Pattern("a.example", below=False, port=0)),
        ("*.a.example:8443", Pattern("a.example", below=True, port=8443)),
        ("*.example", Pattern("example", below=True, port=0)),
        ("bücher.example", Pattern("xn--bcher-kva.example", below=False, port=0)),
    ],
)
def test_patterns_are_read_in_the_same_normal_form(text, pattern):
    assert egress.parse_pattern(text) == pattern


INSIDE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.170", "192.0.2.1",
    "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:93.184.216.34", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:20::1",
    "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2606:4700::1%eth0", "2620:4f:8000::1",
    "", "x", "127.1", "2130706433", "0177.0.0.1", "1.2.3.4/32", " 93.184.216.34",
]  # fmt: skip
PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "2a00:1450:4001::1",
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_of_the_inside_is_not_public(address):
    assert not egress.is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is(address):
    assert egress.is_public(address)


def test_one_address_of_the_inside_spoils_the_name():
    assert egress.unfit(PUBLIC) is None
    for address in INSIDE:
        assert egress.unfit([*PUBLIC, address]).reason == "ADDRESS_NOT_PUBLIC"
    assert egress.unfit([]).reason == "HOST_UNRESOLVED"


@given(st.ip_addresses())
@example(ipaddress.ip_address("192.88.99.1"))
@example(ipaddress.ip_address("64:ff9b::7f00:1"))
def test_no_special_address_is_public(address):
    """Python's own categories are a floor below ours."""
    special = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    special = special or address.is_reserved or address.is_unspecified
    if special:
        assert not egress.is_public(str(address))
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if inner or getattr(address, "teredo", None):
        assert not egress.is_public(str(address))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_within_ipv6_is_never_public(address):
    number = int(address)
    for prefix in ("::", "::ffff:0:0", "64:ff9b::", "64:ff9b:1::"):
        assert not egress.is_public(str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) + number)))
    assert not egress.is_public(str(ipaddress.IPv6Address((0x2002 << 112) + (number << 80))))


@given(st.ip_addresses(v=4), st.integers(1, 65535))
def test_no_spelling_of_an_ipv4_address_is_a_name(address, port):
    number = int(address)
    a, b, c, d = address.packed
    spellings = [
        str(address), str(number), hex(number), f"0{number:o}", f"{a}.{(b << 16) + (c << 8) + d}",
        f"{a}.{b}.{(c << 8) + d}", f"0x{a:x}.{b}.0{c:o}.{d}", f"{address}.", f"{hex(a).upper()}.{b}.{c}.{hex(d)}",
    ]  # fmt: skip
    for spelling in spellings:
        assert isinstance(decide(rules(), f"{spelling}:{port}"), Refusal), spelling


@given(st.text(max_size=80))
@example("xn--.com:443")
@example("ⅷ⒈.com:443")
@example("\udcff.com:443")
def test_whatever_is_allowed_is_a_plain_name_that_means_itself(authority):
    """No exception for any text; and what comes out is ASCII, qualified, no number, and stable."""
    for text in (authority, f"{authority}.com:443", f"a.{authority}:80"):
        found = decide(rules(), text)
        if isinstance(found, Target):
            assert found.host.isascii() and "." in found.host and found.host == found.host.lower()
            assert not set(found.host) & set(" \r\n\t@/:[]%#?\\")
            assert not found.host.rpartition(".")[2].isdigit()
            assert decide(rules(), f"{found.host}:{found.port}") == found


labels = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@given(st.lists(labels, min_size=2, max_size=4), st.lists(labels, min_size=1, max_size=3))
def test_a_pattern_means_what_is_below_it_and_nothing_beside_it(host, below):
    name, deeper = ".".join(host), ".".join([*below, *host])
    star, exact = rules(f"*.{name}"), rules(name)
    assert isinstance(decide(star, f"{deeper}:443"), Target)
    assert isinstance(decide(exact, f"{name}:443"), Target)
    assert decide(star, f"{name}:443").reason == "HOST_NOT_ALLOWED"
    assert decide(exact, f"{deeper}:443").reason == "HOST_NOT_ALLOWED"
    assert decide(star, f"{'x'.join(below)}{name}:443").reason == "HOST_NOT_ALLOWED"
    assert decide(star, f"{deeper}.evil:443").reason == "HOST_NOT_ALLOWED"


def refused(**changes):
    told = {"name": "demo", "members": [{"name": "w", "profile": "coder"}]} | changes
    manifest = ParseDict(told, crew_service_pb2.CrewManifest())
    with pytest.raises(Invalid) as error:
        plan_crew(manifest, PROFILES, lambda prefix: prefix)
    return [(v.field, v.reason) for v in error.value.violations]


def test_a_manifest_names_each_entry_that_cannot_be_read():
    hosts = ["a.example", "10.0.0.1", "*.b.example:8443", "localhost", "c..d:70000"]
    assert refused(network={"allowEgress": True, "egressHosts": hosts}) == [
        ("manifest.network.egress_hosts[1]", "ADDRESS_LITERAL"),
        ("manifest.network.egress_hosts[3]", "HOST_NOT_QUALIFIED"),
        ("manifest.network.egress_hosts[4]", "PATTERN_MALFORMED"),
    ]


@pytest.mark.parametrize("name", ["bus", "egress"])
def test_no_member_is_called_like_the_crews_own_sockets(name):
    assert refused(members=[{"name": name, "profile": "coder"}]) == [("manifest.members[0].name", "RESERVED")]
