"""SPIFFE names are parsed exactly, and identity files are never read torn."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from factory_server.identity.ca import CertificateAuthority
from wire import identity as module
from wire.errors import Unauthenticated, Unavailable
from wire.identity import (
    IdentityFile,
    SpiffeId,
    agent_authority,
    agent_spiffe,
    load_identity,
    operator_spiffe,
    parse_spiffe,
    part_spiffe,
    thumbprint,
)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (part_spiffe("factory"), SpiffeId("factory", "factory")),
        (part_spiffe("gateway"), SpiffeId("gateway", "gateway")),
        (part_spiffe("watchdog"), SpiffeId("watchdog", "watchdog")),
        (operator_spiffe("ada.l"), SpiffeId("operator", "ada.l")),
        (agent_spiffe("c01k", "planner-2"), SpiffeId("agent", "planner-2", "c01k")),
    ],
)
def test_names_go_both_ways(uri: str, expected: SpiffeId) -> None:
    assert parse_spiffe(uri) == expected
    assert expected.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://hyperfactory.local/factory",
        "spiffe://hyperfactory.local",
        "spiffe://hyperfactory.local/factory/",
        "spiffe://hyperfactory.local/factory\n",
        "spiffe://hyperfactoryXlocal/factory",
        "spiffe://hyperfactory.local.evil/factory",
        "spiffe://evil/spiffe://hyperfactory.local/factory",
        "spiffe://hyperfactory.local/operator/",
        "spiffe://hyperfactory.local/operator/a/b",
        "spiffe://hyperfactory.local/crew/c1/agent/",
        "spiffe://hyperfactory.local/crew/c1/agent/a/../../../factory",
        "spiffe://hyperfactory.local/crew//agent/a",
        "SPIFFE://hyperfactory.local/factory",
    ],
)
def test_anything_else_is_refused(uri: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        parse_spiffe(uri)
    assert caught.value.reason == "CERTIFICATE_INVALID"


def test_the_authority_of_an_agent_is_its_dns_name() -> None:
    assert agent_authority("planner", "c1") == "planner.crew-c1.svc"


def test_a_thumbprint_is_that_of_the_leaf(tmp_path: Path) -> None:
    chain = CertificateAuthority.open(tmp_path / "ca").issue_agent("c1", "a", 1).certificate_pem
    leaf = x509.load_pem_x509_certificate(chain)
    digest = module.base64.urlsafe_b64encode(leaf.fingerprint(hashes.SHA256())).rstrip(b"=").decode()
    assert thumbprint(chain) == digest


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n"])
def test_no_certificate_has_no_thumbprint(pem: bytes) -> None:
    with pytest.raises(Unauthenticated):
        thumbprint(pem)


def test_secrets_are_not_in_the_repr(tmp_path: Path) -> None:
    identity = CertificateAuthority.open(tmp_path / "ca").issue_agent("c1", "a", 1)
    assert "PRIVATE" not in repr(identity)


def _version(home: Path, number: int) -> Path:
    version = home / f"v{number}"
    version.mkdir()
    for name in ("cert.pem", "key.pem", "ca.pem", "token"):
        (version / name).write_text(f"{number}\n")
    return version


def _swap(home: Path, number: int) -> None:
    link = home / f"l{number}"
    link.symlink_to(_version(home, number).name)
    link.replace(home / "me")


def test_a_reader_never_sees_two_versions_at_once(tmp_path: Path) -> None:
    _swap(tmp_path, 0)
    stop = threading.Event()

    def write() -> None:
        for number in itertools.count(1):
            if stop.is_set():
                return
            _swap(tmp_path, number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [load_identity(tmp_path / "me") for _ in range(500)]
    finally:
        stop.set()
        writer.join()
    for identity in seen:
        assert identity.certificate_pem == identity.key_pem == identity.ca_pem
        assert identity.certificate_pem.strip().decode() == identity.token
    assert len({identity.token for identity in seen}) > 1, "nothing was written meanwhile"


def test_a_file_is_followed_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
    _swap(tmp_path, 1)
    file = IdentityFile(tmp_path / "me")
    first = file.current()
    assert file.current() is first, "unchanged: the same object, so that channels can compare by identity"
    _swap(tmp_path, 2)
    assert file.current().token == "2"


def test_a_directory_that_is_gone_keeps_the_last_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.0)
    _swap(tmp_path, 1)
    file = IdentityFile(tmp_path / "me")
    (tmp_path / "me").unlink()
    assert file.current().token == "1"
    with pytest.raises(Unavailable):
        load_identity(tmp_path / "me")
