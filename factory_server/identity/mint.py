"""Sign tokens that say who a caller is and what it may do, each bound to one client certificate."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from factory_server.identity.keyfiles import private_directory, publish
from wire.tokens import ALGORITHM, AUDIENCE, ISSUER, LIFE_MAX_S, SCOPES, TYPE, wall_clock

AGENT_TOKEN_TTL_S: Final = 300.0
OPERATOR_TOKEN_TTL_S: Final = 3600.0
KEY: Final = "key.pem"
KEYS_KEPT: Final = 2
LIST_AGAIN_S: Final = 1.0
"""How soon a key that another process added is used and shown."""


class TokenMint:
    """Signs with the newest key of its directory; the one before still verifies."""

    def __init__(self, directory: Path, now: Callable[[], float]) -> None:
        self._directory = directory
        self._now = now
        self._loaded: dict[str, ed25519.Ed25519PrivateKey] = {}
        self._listed: list[str] = []
        self._list_again_at = 0.0

    @classmethod
    def open(cls, directory: Path, *, now: Callable[[], float] = wall_clock) -> TokenMint:
        """Read the keys of this directory, or make the first; safe when several processes do so at once."""
        private_directory(directory)
        mint = cls(directory, now)
        if not mint._names():
            mint._make(1)
        return mint

    def mint(
        self,
        subject: str,
        *,
        thumbprint: str,
        scopes: Iterable[str],
        ttl_s: float,
        crew: str = "",
        agent: str = "",
        generation: int = 0,
    ) -> str:
        """A token for the holder of the certificate with this thumbprint (`wire.identity.thumbprint`)."""
        granted = frozenset(scopes)
        if not granted <= SCOPES or not 0 < ttl_s <= LIFE_MAX_S or not thumbprint:
            raise ValueError(
                f"cannot mint a token for '{subject}': scopes, life or binding are out of bounds"
            )
        now = self._now()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "crew": crew,
            "agent": agent,
            "gen": generation,
            "scope": " ".join(sorted(granted)),
            "jti": secrets.token_urlsafe(12),
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + ttl_s),
            "cnf": {"x5t#S256": thumbprint},
        }
        key = self._key(self._names()[-1])
        return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": _kid(key), "typ": TYPE})

    def jwks(self) -> str:
        """The public keys that verify, as a JWKS; changes when a key is added."""
        keys = [_jwk(self._key(name)) for name in self._names()[-KEYS_KEPT:]]
        return json.dumps({"keys": keys}, separators=(",", ":"))

    def rotate(self) -> None:
        """Add a key that signs from now on."""
        self._make(int(self._names()[-1][1:]) + 1)

    def _make(self, number: int) -> None:
        key = ed25519.Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        publish(self._directory / f"k{number:06d}", {KEY: pem})
        self._list_again_at = 0.0

    def _names(self) -> list[str]:
        now = time.monotonic()
        if now >= self._list_again_at:
            self._listed = sorted(path.name for path in self._directory.glob("k[0-9]*"))
            self._list_again_at = now + LIST_AGAIN_S if self._listed else 0.0
        return self._listed

    def _key(self, name: str) -> ed25519.Ed25519PrivateKey:
        if name not in self._loaded:
            pem = (self._directory / name / KEY).read_bytes()
            key = serialization.load_pem_private_key(pem, password=None)
            if not isinstance(key, ed25519.Ed25519PrivateKey):
                raise TypeError(f"cannot sign with '{name}': it is no Ed25519 key")
            self._loaded[name] = key
        return self._loaded[name]


def _public(key: ed25519.Ed25519PrivateKey) -> dict[str, str]:
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}


def _jwk(key: ed25519.Ed25519PrivateKey) -> dict[str, str]:
    return {**_public(key), "alg": ALGORITHM, "use": "sig", "kid": _kid(key)}


def _kid(key: ed25519.Ed25519PrivateKey) -> str:
    """The key's JWK thumbprint (RFC 7638): the same wherever it is computed."""
    canonical = json.dumps(_public(key), separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
