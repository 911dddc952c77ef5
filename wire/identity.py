"""Who a process is: SPIFFE names, and the certificate, key, roots and token it shows.

Stays free of `cryptography`: the runtime imports it under a budget.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from wire.errors import Unauthenticated, Unavailable

LOG = logging.getLogger("hyperfactory.wire")

TRUST_DOMAIN: Final = "hyperfactory.local"
FACTORY_AUTHORITY: Final = "factory.svc"

CERTIFICATE_FILE: Final = "cert.pem"
KEY_FILE: Final = "key.pem"
CA_FILE: Final = "ca.pem"
TOKEN_FILE: Final = "token"

LOOK_AGAIN_S: Final = 1.0
READ_ATTEMPTS: Final = 5

Kind = Literal["factory", "gateway", "watchdog", "operator", "agent"]

_LABEL = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_CREW = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_PART_RE = re.compile(rf"spiffe://{re.escape(TRUST_DOMAIN)}/(factory|gateway|watchdog)")
_OPERATOR_RE = re.compile(rf"spiffe://{re.escape(TRUST_DOMAIN)}/operator/([a-zA-Z0-9._-]{{1,64}})")
_AGENT_RE = re.compile(rf"spiffe://{re.escape(TRUST_DOMAIN)}/crew/({_CREW})/agent/({_LABEL})")
_PEM_RE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A name of ours: its kind, its own name (user, agent or part), and an agent's crew."""

    kind: Kind
    name: str
    crew: str = ""

    @property
    def uri(self) -> str:
        match self.kind:
            case "agent":
                return agent_spiffe(self.crew, self.name)
            case "operator":
                return f"spiffe://{TRUST_DOMAIN}/operator/{self.name}"
            case "factory" | "gateway" | "watchdog":
                return f"spiffe://{TRUST_DOMAIN}/{self.kind}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a process shows to others: leaf and chain, key, the roots it trusts, and its token if it has one."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    ca_pem: bytes
    token: str = field(default="", repr=False)


def agent_authority(name: str, crew: str) -> str:
    """The DNS name of an agent: authority and TLS server name of a call to it."""
    return f"{name}.crew-{crew}.svc"


def agent_spiffe(crew: str, name: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/crew/{crew}/agent/{name}"


def part_spiffe(part: Literal["factory", "gateway", "watchdog"]) -> str:
    return f"spiffe://{TRUST_DOMAIN}/{part}"


def operator_spiffe(user: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/operator/{user}"


def parse_spiffe(uri: str) -> SpiffeId:
    """The parts of a name; anything that is not exactly one of ours is refused."""
    if found := _AGENT_RE.fullmatch(uri):
        return SpiffeId("agent", found[2], found[1])
    if found := _OPERATOR_RE.fullmatch(uri):
        return SpiffeId("operator", found[1])
    if _PART_RE.fullmatch(uri):
        part = uri.rsplit("/", 1)[1]
        return SpiffeId(part, part)  # type: ignore[arg-type]  # the pattern allows no other
    raise Unauthenticated(f"'{uri[:200]}' is no identity of ours", reason="CERTIFICATE_INVALID")


def certificate_der(pem: bytes) -> bytes:
    """The first certificate (the leaf) of a PEM text, as DER."""
    found = _PEM_RE.search(pem)
    if found is None:
        raise Unauthenticated("no certificate in PEM", reason="CERTIFICATE_INVALID")
    try:
        return base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error as error:
        raise Unauthenticated("certificate is no PEM", reason="CERTIFICATE_INVALID") from error


def thumbprint(pem: bytes) -> str:
    """The `x5t#S256` of a certificate (RFC 8705): SHA-256 of its DER, base64url without padding."""
    digest = hashlib.sha256(certificate_der(pem)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def load_identity(directory: Path) -> Identity:
    """Read an identity directory; never a certificate of one version with the key of another."""
    for _ in range(READ_ATTEMPTS):
        # The writer swaps a symlink to a directory that never changes: resolve once, read all from there.
        real = directory.resolve()
        try:
            before = _stamp(real)
            identity = _read(real)
        except FileNotFoundError:
            continue  # swept between resolving and reading: the next version is there already
        if before == _stamp(real):
            return identity
    raise Unavailable(f"cannot read an identity from '{directory}'")


def _read(directory: Path) -> Identity:
    token = directory / TOKEN_FILE
    return Identity(
        certificate_pem=(directory / CERTIFICATE_FILE).read_bytes(),
        key_pem=(directory / KEY_FILE).read_bytes(),
        ca_pem=(directory / CA_FILE).read_bytes(),
        token=token.read_text().strip() if token.exists() else "",
    )


def _stamp(directory: Path) -> tuple[tuple[str, int], ...]:
    names = (CERTIFICATE_FILE, KEY_FILE, CA_FILE, TOKEN_FILE)
    return tuple(
        (str(path), path.stat().st_mtime_ns) for path in (directory / name for name in names) if path.exists()
    )


class IdentityFile:
    """An identity directory that its writer renews: `current()` follows it, looking once a second."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._identity = load_identity(directory)
        self._stamp = _stamp(directory.resolve())
        self._look_at = time.monotonic() + LOOK_AGAIN_S

    def current(self) -> Identity:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN_S
            self._look()
        return self._identity

    def _look(self) -> None:
        try:
            stamp = _stamp(self._directory.resolve())
            if not stamp or stamp == self._stamp:
                return
            self._identity = load_identity(self._directory)
        except (OSError, Unavailable):
            # What was read is good for half its life yet; a call must not fail for a disk that does.
            LOG.warning("cannot read identity", exc_info=True, extra={"action": "identity_unreadable"})
            return
        self._stamp = stamp
