"""An agent's identity names its generation everywhere, and its certificate is not renewed needlessly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from factory_server.core.ports import Identities
from factory_server.identity.agents import AgentIdentities
from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.mint import TokenMint
from wire.identity import thumbprint
from wire.tokens import TokenVerifier


def row(generation: int = 1, uid: str = "u1") -> Any:
    return SimpleNamespace(uid=uid, crew="c1", name="planner", scope="reviewer", generation=generation)


def made(tmp_path: Path, now: list[datetime]) -> AgentIdentities:
    ca = CertificateAuthority.open(tmp_path / "ca", now=lambda: now[0])
    mint = TokenMint.open(tmp_path / "mint", now=lambda: now[0].timestamp())
    return AgentIdentities(ca, mint, now=lambda: now[0])


def test_token_and_certificate_belong_together(tmp_path: Path) -> None:
    now = [datetime(2030, 1, 1, tzinfo=UTC)]
    identities: Identities = made(tmp_path, now)
    identity = identities.identify(row(generation=5))
    verifier = TokenVerifier(identity.jwks, now=lambda: now[0].timestamp())
    claims = verifier.verify(identity.token, thumbprint=thumbprint(identity.certificate_pem))
    assert (claims.crew, claims.agent, claims.generation, claims.scopes) == ("c1", "planner", 5, {"reviewer"})
    assert claims.expires_at - claims.issued_at == identities.token_ttl_s()


def test_a_renewal_keeps_the_certificate_until_half_of_its_life(tmp_path: Path) -> None:
    now = [datetime(2030, 1, 1, tzinfo=UTC)]
    identities = made(tmp_path, now)
    first = identities.identify(row())
    now[0] += timedelta(minutes=29)
    second = identities.identify(row())
    assert (second.certificate_pem, second.key_pem) == (first.certificate_pem, first.key_pem)
    assert second.token != first.token
    now[0] += timedelta(minutes=1)
    assert identities.identify(row()).certificate_pem != first.certificate_pem


def test_generations_never_share_a_key(tmp_path: Path) -> None:
    identities = made(tmp_path, [datetime(2030, 1, 1, tzinfo=UTC)])
    keys = {
        identities.identify(row(generation, uid)).key_pem for generation in (1, 2) for uid in ("u1", "u2")
    }
    assert len(keys) == 4
