"""The authority issues what peers verify: a short chain under the root, with the names it was asked for."""

from __future__ import annotations

import stat
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from factory_server.identity.ca import AGENT_TTL_S, BACKDATE_S, CertificateAuthority, half_life
from wire.identity import Identity, agent_authority, agent_spiffe

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def chain(identity: Identity) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(identity.certificate_pem)


def verify(identity: Identity, bundle: bytes, at: datetime, name: str) -> None:
    """As a strict stranger would (RFC 5280 rules of `cryptography`)."""
    leaf, *intermediates = chain(identity)
    store = verification.Store(x509.load_pem_x509_certificates(bundle))
    builder = verification.PolicyBuilder().store(store).time(at)
    builder.build_server_verifier(x509.DNSName(name)).verify(leaf, intermediates)
    builder.build_client_verifier().verify(leaf, intermediates)


def test_a_leaf_verifies_under_the_roots_and_names_its_agent(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path, now=lambda: NOW)
    identity = ca.issue_agent("c1", "planner", 3)
    verify(identity, ca.bundle_pem, NOW, agent_authority("planner", "c1"))
    leaf = chain(identity)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [agent_spiffe("c1", "planner")]
    assert names.get_values_for_type(x509.DNSName) == ["planner.crew-c1.svc"]
    assert leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value == "g3"
    assert leaf.not_valid_after_utc == NOW + timedelta(seconds=AGENT_TTL_S)
    assert leaf.not_valid_before_utc == NOW - timedelta(seconds=BACKDATE_S)


def test_the_key_is_that_of_the_leaf(tmp_path: Path) -> None:
    identity = CertificateAuthority.open(tmp_path).issue_agent("c1", "a", 1)
    key = serialization.load_pem_private_key(identity.key_pem, password=None)
    assert key.public_key() == chain(identity)[0].public_key()


def test_another_authoritys_leaf_does_not_verify(tmp_path: Path) -> None:
    ours = CertificateAuthority.open(tmp_path / "a", now=lambda: NOW)
    theirs = CertificateAuthority.open(tmp_path / "b", now=lambda: NOW)
    with pytest.raises(verification.VerificationError):
        verify(theirs.issue_agent("c1", "a", 1), ours.bundle_pem, NOW, "a.crew-c1.svc")


def test_a_leaf_ends_when_its_time_is_over(tmp_path: Path) -> None:
    ca = CertificateAuthority.open(tmp_path, now=lambda: NOW)
    with pytest.raises(verification.VerificationError):
        verify(ca.issue_agent("c1", "a", 1), ca.bundle_pem, NOW + timedelta(hours=2), "a.crew-c1.svc")


def test_a_leaf_cannot_sign(tmp_path: Path) -> None:
    leaf = chain(CertificateAuthority.open(tmp_path).issue_agent("c1", "a", 1))[0]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_the_issuing_authority_cannot_make_another(tmp_path: Path) -> None:
    issuing = chain(CertificateAuthority.open(tmp_path).issue_agent("c1", "a", 1))[1]
    assert issuing.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


@pytest.mark.parametrize(
    ("client", "server", "purposes"),
    [
        (True, False, {ExtendedKeyUsageOID.CLIENT_AUTH}),
        (False, True, {ExtendedKeyUsageOID.SERVER_AUTH}),
    ],
)
def test_purposes_can_be_narrowed(tmp_path: Path, client: bool, server: bool, purposes: set[object]) -> None:
    ca = CertificateAuthority.open(tmp_path)
    leaf = chain(ca.issue("spiffe://x/y", [], ttl_s=60, client=client, server=server))[0]
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == purposes


def test_no_leaf_outlives_its_issuer(tmp_path: Path) -> None:
    CertificateAuthority.open(tmp_path, now=lambda: NOW)
    late = CertificateAuthority.open(tmp_path, now=lambda: NOW + timedelta(days=364, hours=23, minutes=30))
    leaf, issuing = chain(late.issue_agent("c1", "a", 1))
    assert leaf.not_valid_after_utc == issuing.not_valid_after_utc


def test_half_of_a_life_is_counted_from_its_issue(tmp_path: Path) -> None:
    identity = CertificateAuthority.open(tmp_path, now=lambda: NOW).issue_agent("c1", "a", 1)
    assert half_life(identity.certificate_pem) == NOW + timedelta(seconds=AGENT_TTL_S / 2)


def test_keys_are_private_and_apart(tmp_path: Path) -> None:
    CertificateAuthority.open(tmp_path / "ca")
    keys = sorted((tmp_path / "ca").rglob("key.pem"))
    assert [key.parent.name for key in keys] == ["issuing", "root"]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    directories = {path for key in keys for path in (key.parent, key.parent.parent)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}
    assert not list((tmp_path / "ca").glob(".new-*"))


def test_the_root_key_can_be_kept_elsewhere(tmp_path: Path) -> None:
    before = CertificateAuthority.open(tmp_path).bundle_pem
    (tmp_path / "root" / "key.pem").unlink()
    ca = CertificateAuthority.open(tmp_path)
    verify(ca.issue_agent("c1", "a", 1), before, datetime.now(UTC), "a.crew-c1.svc")


def _open(directory: str) -> tuple[bytes, bytes]:
    ca = CertificateAuthority.open(Path(directory))
    return ca.bundle_pem, chain(ca.issue_agent("c1", "a", 1))[1].public_bytes(serialization.Encoding.PEM)


def test_factories_that_start_at_once_agree(tmp_path: Path) -> None:
    with ProcessPoolExecutor(6, mp_context=get_context("spawn")) as pool:
        seen = set(pool.map(_open, [str(tmp_path / "ca")] * 12))
    assert len(seen) == 1
