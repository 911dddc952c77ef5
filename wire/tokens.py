"""Verify the factory's tokens: one algorithm, known keys, typed claims, bound to a client certificate."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from wire.errors import Unauthenticated

ISSUER: Final = "https://factory.svc"
AUDIENCE: Final = "hyperfactory"
ALGORITHM: Final = "EdDSA"
TYPE: Final = "hf-at+jwt"
SCOPES: Final = frozenset({"admin", "coder", "reviewer"})
SCOPES_METADATA: Final = "x-hyperfactory-scopes"
"""In which the factory says with whose scopes it asks an agent something."""

LEEWAY_S: Final = 5.0
LIFE_MAX_S: Final = 12 * 3600.0
TOKEN_MAX_CHARS: Final = 4096
CACHE_MAX_TOKENS: Final = 2048
KEYS_REREAD_S: Final = 1.0

_KID_RE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER_KEYS: Final = frozenset({"alg", "kid", "typ"})


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    subject: str
    crew: str
    agent: str
    generation: int
    scopes: frozenset[str]
    token_id: str
    issued_at: float
    not_before: float
    expires_at: float
    thumbprint: str


def wall_clock() -> float:
    """Seconds since the epoch: tokens speak of wall time."""
    return datetime.now(UTC).timestamp()


class TokenVerifier:
    """Verifies tokens against a JWKS, and remembers the good ones until they end."""

    def __init__(
        self,
        jwks_json: str | Callable[[], str],
        *,
        issuer: str = ISSUER,
        audience: str = AUDIENCE,
        now: Callable[[], float] = wall_clock,
    ) -> None:
        self._jwks: Callable[[], str] = jwks_json if callable(jwks_json) else lambda: jwks_json
        self._issuer = issuer
        self._audience = audience
        self._now = now
        self._keys: dict[str, Any] = {}
        self._keys_text = ""
        self._reread_at = 0.0
        self._seen: OrderedDict[tuple[str, str], Claims] = OrderedDict()

    def verify(self, token: str, *, thumbprint: str) -> Claims:
        """The claims of a token shown together with the certificate of this thumbprint."""
        if not token:
            raise Unauthenticated("no token", reason="TOKEN_MISSING")
        claims = self._seen.get((token, thumbprint))
        if claims is None:
            claims = self._verify(token, thumbprint)
            self._check_time(claims)
            self._remember(token, thumbprint, claims)
        else:
            self._check_time(claims)
        return claims

    def forget(self) -> None:
        """Drop remembered tokens and keys: after a key was withdrawn."""
        self._seen.clear()
        self._keys = {}
        self._keys_text = ""
        self._reread_at = 0.0

    def _remember(self, token: str, thumbprint: str, claims: Claims) -> None:
        self._seen[token, thumbprint] = claims
        if len(self._seen) > CACHE_MAX_TOKENS:
            self._seen.popitem(last=False)

    def _check_time(self, claims: Claims) -> None:
        now = self._now()
        if now >= claims.expires_at + LEEWAY_S:
            raise Unauthenticated("token has expired", reason="TOKEN_EXPIRED")
        if now < max(claims.not_before, claims.issued_at) - LEEWAY_S:
            raise _invalid("is not valid yet")

    def _verify(self, token: str, thumbprint: str) -> Claims:
        # PyJWT costs 10 MB of memory with `cryptography`; a runtime that never sees a token does not pay.
        import jwt

        if len(token) > TOKEN_MAX_CHARS:
            raise _invalid("is too long")
        try:
            header = jwt.get_unverified_header(token)
        except Exception as error:  # whatever the parser says, the bytes were the caller's
            raise _invalid("cannot be read") from error
        key = self._key(_kid(header))
        try:
            payload = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "require": ["iss", "aud", "sub", "jti", "iat", "nbf", "exp"],
                    "strict_aud": True,
                    # Times are checked by `_check_time`: on every use, with a clock that tests can turn.
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except Exception as error:  # a claim of an odd type makes PyJWT raise whatever it likes
            raise _invalid("does not verify") from error
        claims = _claims(payload)
        if not hmac.compare_digest(claims.thumbprint.encode(), thumbprint.encode()):
            raise _invalid("is bound to another certificate")
        return claims

    def _key(self, kid: str) -> Any:
        if kid not in self._keys and time.monotonic() >= self._reread_at:
            self._reread_at = time.monotonic() + KEYS_REREAD_S
            self._read_keys()
        if kid not in self._keys:
            raise _invalid("is signed by an unknown key")
        return self._keys[kid]

    def _read_keys(self) -> None:
        import jwt

        text = self._jwks()
        if text == self._keys_text:
            return
        self._keys = {
            entry["kid"]: jwt.PyJWK(entry, algorithm=ALGORITHM)
            for entry in (json.loads(text)["keys"] if text else ())
            if entry.get("kty") == "OKP" and entry.get("crv") == "Ed25519"
        }
        self._keys_text = text
        self._seen.clear()  # a key may have been withdrawn


def _invalid(what: str) -> Unauthenticated:
    return Unauthenticated(f"token {what}", reason="TOKEN_INVALID")


def _kid(header: Mapping[str, Any]) -> str:
    # Exactly these: no `jku`, `jwk`, `x5u`, `x5c` or `crit` that could point at other keys (RFC 8725, 3.10).
    if header.keys() != _HEADER_KEYS or header["alg"] != ALGORITHM or header["typ"] != TYPE:
        raise _invalid("has a header that is not ours")
    kid = header["kid"]
    if not isinstance(kid, str) or not _KID_RE.fullmatch(kid):
        raise _invalid("has a header that is not ours")
    return kid


def _claims(payload: Mapping[str, Any]) -> Claims:
    """Typed claims: PyJWT checks the registered ones only, and those by presence."""
    confirmation = payload.get("cnf")
    claims = Claims(
        subject=_text(payload, "sub"),
        crew=_text(payload, "crew", empty=True),
        agent=_text(payload, "agent", empty=True),
        generation=_integer(payload, "gen"),
        scopes=frozenset(_text(payload, "scope", empty=True).split()),
        token_id=_text(payload, "jti"),
        issued_at=_seconds(payload, "iat"),
        not_before=_seconds(payload, "nbf"),
        expires_at=_seconds(payload, "exp"),
        thumbprint=_text(confirmation if isinstance(confirmation, dict) else {}, "x5t#S256"),
    )
    if not claims.scopes <= SCOPES:
        raise _invalid("has an unknown scope")
    if not 0 < claims.expires_at - claims.issued_at <= LIFE_MAX_S:
        raise _invalid("lives too long")
    return claims


def _text(payload: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = payload.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise _invalid(f"has no valid '{name}'")
    return value


def _integer(payload: Mapping[str, Any], name: str) -> int:
    value = payload.get(name)
    if type(value) is not int or value < 0:
        raise _invalid(f"has no valid '{name}'")
    return value


def _seconds(payload: Mapping[str, Any], name: str) -> float:
    value = payload.get(name)
    if type(value) not in (int, float) or not 0 < float(value) < 1e11:  # type: ignore[arg-type]
        raise _invalid(f"has no valid '{name}'")
    return float(value)  # type: ignore[arg-type]
