"""What is read from a verified certificate: one identity of ours, and a generation only from its own field."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_server.identity.ca import CertificateAuthority
from wire.errors import Unauthenticated
from wire.identity import agent_spiffe, operator_spiffe
from wire.peers import _read_peer

AGENT = agent_spiffe("c1", "planner").encode()


@pytest.fixture
def pem(tmp_path: Path) -> bytes:
    return CertificateAuthority.open(tmp_path / "ca").issue_agent("c1", "planner", 7).certificate_pem


@pytest.mark.parametrize(
    ("subject", "generation"),
    [
        (b"OU=g7,CN=planner", 7),
        (b"CN=planner,OU=g12", 12),
        (b"OU=g7", 7),
        (b"OU=x,OU=g8,CN=a", 8),
    ],
)
def test_the_generation_is_the_units(pem: bytes, subject: bytes, generation: int) -> None:
    assert _read_peer(pem, {"peer_uri": [AGENT], "x509_subject": [subject]}).generation == generation


@pytest.mark.parametrize(
    "subject",
    [b"", b"CN=planner", b"CN=OU=g7", rb"CN=a\,OU=g7", b"OU=g", b"OU=g-1", b"OU=g7x", b"OU=g0", b"XOU=g7"],
)
def test_an_agent_without_a_generation_is_refused(pem: bytes, subject: bytes) -> None:
    with pytest.raises(Unauthenticated) as caught:
        _read_peer(pem, {"peer_uri": [AGENT], "x509_subject": [subject]})
    assert caught.value.reason == "CERTIFICATE_INVALID"


@pytest.mark.parametrize("uris", [[], [AGENT, operator_spiffe("eve").encode()], [b"\xff"]])
def test_a_certificate_has_exactly_one_identity(pem: bytes, uris: list[bytes]) -> None:
    with pytest.raises(Unauthenticated):
        _read_peer(pem, {"peer_uri": uris, "x509_subject": [b"OU=g7"]})
