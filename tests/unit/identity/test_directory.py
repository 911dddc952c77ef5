"""Identity directories are written, renewed at half of a life, and never torn."""

from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from factory_server.identity import directory as module
from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.directory import HOLDERS, VERSIONS_KEPT, IdentityDirectory
from factory_server.identity.mint import TokenMint
from wire.identity import load_identity, thumbprint
from wire.tokens import TokenVerifier

EVERYBODY = ["factory", "gateway", "watchdog", "operator"]


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def identities(tmp_path: Path, clock: Clock) -> IdentityDirectory:
    ca = CertificateAuthority.open(tmp_path / "ca", now=clock)
    mint = TokenMint.open(tmp_path / "mint", now=clock.seconds)
    return IdentityDirectory(tmp_path / "pki", ca, mint, now=clock)


def test_everybody_gets_a_directory_once(identities: IdentityDirectory) -> None:
    assert identities.renew() == EVERYBODY
    assert identities.renew() == []
    for who in EVERYBODY:
        files = {path.name for path in identities.path(who).iterdir()}
        assert files == {"cert.pem", "key.pem", "ca.pem"} | ({"token"} if who == "operator" else set())


def test_files_are_for_their_owner_only(identities: IdentityDirectory) -> None:
    identities.renew()
    for path in identities.path("operator").parent.rglob("*"):
        if path.is_symlink():
            continue
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_the_operators_token_is_bound_to_its_certificate(
    tmp_path: Path, identities: IdentityDirectory, clock: Clock
) -> None:
    identities.renew()
    operator = load_identity(identities.path("operator"))
    verifier = TokenVerifier(TokenMint.open(tmp_path / "mint").jwks, now=clock.seconds)
    claims = verifier.verify(operator.token, thumbprint=thumbprint(operator.certificate_pem))
    assert (claims.scopes, claims.subject) == ({"admin"}, "spiffe://hyperfactory.local/operator/local")


def test_a_token_is_renewed_at_half_of_its_life_with_the_same_certificate(
    identities: IdentityDirectory, clock: Clock
) -> None:
    identities.renew()
    before = load_identity(identities.path("operator"))
    clock.now += timedelta(minutes=29)
    assert identities.renew() == []
    clock.now += timedelta(minutes=1)
    assert identities.renew() == ["operator"]
    after = load_identity(identities.path("operator"))
    assert after.certificate_pem == before.certificate_pem
    assert after.token != before.token


def test_certificates_are_renewed_at_half_of_their_life(identities: IdentityDirectory, clock: Clock) -> None:
    identities.renew()
    before = {who: load_identity(identities.path(who)) for who in EVERYBODY}
    clock.now += timedelta(hours=12)
    assert identities.renew() == EVERYBODY
    for who in EVERYBODY:
        assert load_identity(identities.path(who)).certificate_pem != before[who].certificate_pem


def test_another_root_or_another_mint_means_other_identities(
    tmp_path: Path, identities: IdentityDirectory, clock: Clock
) -> None:
    identities.renew()
    ca = CertificateAuthority.open(tmp_path / "ca", now=clock)
    other_mint = TokenMint.open(tmp_path / "mint2", now=clock.seconds)
    assert IdentityDirectory(tmp_path / "pki", ca, other_mint, now=clock).renew() == ["operator"]
    other_ca = CertificateAuthority.open(tmp_path / "ca2", now=clock)
    assert IdentityDirectory(tmp_path / "pki", other_ca, other_mint, now=clock).renew() == EVERYBODY


def test_old_versions_are_swept(identities: IdentityDirectory, clock: Clock) -> None:
    for _ in range(6):
        identities.renew()
        clock.now += timedelta(hours=13)
    home = identities.path("operator").parent
    for holder in HOLDERS:
        assert len(list((home / ".versions" / holder.who).iterdir())) == VERSIONS_KEPT + 1  # and the link
    assert {path.name for path in home.iterdir()} == {*EVERYBODY, ".versions"}


def test_a_holders_directory_is_enough_by_itself(
    identities: IdentityDirectory, clock: Clock, tmp_path: Path
) -> None:
    """A container is shown this directory only, at another path, and follows renewals."""
    identities.renew()
    inside = tmp_path / "identity"
    inside.symlink_to(tmp_path / "pki" / ".versions" / "gateway")
    for _ in range(2):
        assert load_identity(inside / "current") == load_identity(identities.path("gateway"))
        clock.now += timedelta(hours=13)
        assert "gateway" in identities.renew()
    links = [path for path in inside.resolve().iterdir() if path.is_symlink()]
    assert [str(link.readlink().parent) for link in links] == ["."]


async def test_the_loop_renews_and_outlives_a_failure(
    identities: IdentityDirectory,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    identities.renew()
    first = load_identity(identities.path("operator")).token
    versions = identities.path("operator").parent / ".versions"
    aside = versions.rename(versions.with_name(".aside"))
    versions.write_text("no directory")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(identities.run())
        while "cannot renew identities" not in caplog.text:
            await asyncio.sleep(0.01)
        versions.unlink()
        aside.rename(versions)
        clock.now += timedelta(minutes=31)
        while load_identity(identities.path("operator")).token == first:
            await asyncio.sleep(0.01)
        task.cancel()
