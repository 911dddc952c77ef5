"""The mint signs what the verifier accepts, and nothing wider than a token may be."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jwt
import pytest

from factory_server.identity.mint import TokenMint
from wire import tokens
from wire.errors import Unauthenticated
from wire.tokens import TokenVerifier

SUBJECT = "spiffe://hyperfactory.local/crew/c1/agent/planner"
NOW = 1_900_000_000.0
GOOD: dict[str, Any] = {"thumbprint": "t" * 43, "scopes": ["coder"], "ttl_s": 300.0}


def test_a_token_says_what_it_was_asked_to_say(tmp_path: Path) -> None:
    mint = TokenMint.open(tmp_path, now=lambda: NOW)
    token = mint.mint(SUBJECT, crew="c1", agent="planner", generation=4, **GOOD)
    claims = TokenVerifier(mint.jwks, now=lambda: NOW).verify(token, thumbprint="t" * 43)
    assert (claims.subject, claims.crew, claims.agent, claims.generation) == (SUBJECT, "c1", "planner", 4)
    assert (claims.scopes, claims.expires_at) == ({"coder"}, NOW + 300)
    assert jwt.get_unverified_header(token).keys() == {"alg", "kid", "typ"}


@pytest.mark.parametrize(
    "change", [{"scopes": ["root"]}, {"ttl_s": 0}, {"ttl_s": 43_201.0}, {"thumbprint": ""}, {"ttl_s": -1}]
)
def test_what_no_verifier_would_take_is_not_minted(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot mint"):
        TokenMint.open(tmp_path).mint(SUBJECT, **GOOD | change)


def test_each_token_is_another(tmp_path: Path) -> None:
    mint = TokenMint.open(tmp_path)
    assert mint.mint(SUBJECT, **GOOD) != mint.mint(SUBJECT, **GOOD)


def test_jwks_are_public(tmp_path: Path) -> None:
    keys = json.loads(TokenMint.open(tmp_path).jwks())["keys"]
    assert [key.keys() for key in keys] == [{"kty", "crv", "x", "kid", "alg", "use"}]


def test_the_key_before_still_verifies_and_the_one_before_that_does_not(tmp_path: Path) -> None:
    mint = TokenMint.open(tmp_path)
    minted = []
    for _ in range(3):
        minted.append(mint.mint(SUBJECT, **GOOD))
        mint.rotate()
    verifier = TokenVerifier(mint.jwks)
    verifier.verify(minted[2], thumbprint="t" * 43)
    for old in minted[:2]:
        with pytest.raises(Unauthenticated) as caught:
            verifier.verify(old, thumbprint="t" * 43)
        assert caught.value.reason == "TOKEN_INVALID"


def test_a_withdrawn_key_ends_remembered_tokens(tmp_path: Path) -> None:
    mint = TokenMint.open(tmp_path)
    verifier = TokenVerifier(mint.jwks)
    token = mint.mint(SUBJECT, **GOOD)
    verifier.verify(token, thumbprint="t" * 43)
    mint.rotate()
    mint.rotate()
    verifier.forget()
    with pytest.raises(Unauthenticated):
        verifier.verify(token, thumbprint="t" * 43)


def test_a_remembered_token_ends_on_time(tmp_path: Path) -> None:
    now = NOW
    mint = TokenMint.open(tmp_path, now=lambda: now)
    verifier = TokenVerifier(mint.jwks, now=lambda: now)
    token = mint.mint(SUBJECT, **GOOD)
    verifier.verify(token, thumbprint="t" * 43)
    now = NOW + 304.9
    verifier.verify(token, thumbprint="t" * 43)
    now = NOW + 305
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token, thumbprint="t" * 43)
    assert caught.value.reason == "TOKEN_EXPIRED"


def test_a_remembered_token_is_not_good_for_another_certificate(tmp_path: Path) -> None:
    mint = TokenMint.open(tmp_path)
    verifier = TokenVerifier(mint.jwks)
    token = mint.mint(SUBJECT, **GOOD)
    verifier.verify(token, thumbprint="t" * 43)
    with pytest.raises(Unauthenticated):
        verifier.verify(token, thumbprint="u" * 43)


def test_the_memory_of_tokens_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_MAX_TOKENS", 8)
    mint = TokenMint.open(tmp_path)
    verifier = TokenVerifier(mint.jwks)
    for _ in range(13):
        verifier.verify(mint.mint(SUBJECT, **GOOD), thumbprint="t" * 43)
    assert len(verifier._seen) == 8


@pytest.mark.parametrize("text", ["x", "a.b.c", "....", "\ud800", "A" * 5000, "é.é.é"])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    verifier = TokenVerifier(TokenMint.open(tmp_path).jwks)
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(text, thumbprint="t" * 43)
    assert caught.value.reason == "TOKEN_INVALID"


def test_unknown_keys_do_not_make_the_verifier_read_again_and_again(tmp_path: Path) -> None:
    mint = TokenMint.open(tmp_path / "a")
    reads = 0

    def jwks() -> str:
        nonlocal reads
        reads += 1
        return mint.jwks()

    verifier = TokenVerifier(jwks)
    foreign = TokenMint.open(tmp_path / "b")
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            verifier.verify(foreign.mint(SUBJECT, **GOOD), thumbprint="t" * 43)
    assert reads == 1


def test_keys_are_private(tmp_path: Path) -> None:
    TokenMint.open(tmp_path / "mint")
    key = next((tmp_path / "mint").rglob("key.pem"))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == stat.S_IMODE(key.parent.parent.stat().st_mode) == 0o700


def _jwks(directory: str) -> str:
    return TokenMint.open(Path(directory)).jwks()


def test_factories_that_start_at_once_agree(tmp_path: Path) -> None:
    with ProcessPoolExecutor(6, mp_context=get_context("spawn")) as pool:
        assert len(set(pool.map(_jwks, [str(tmp_path / "mint")] * 12))) == 1
