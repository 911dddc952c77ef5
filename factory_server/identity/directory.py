"""Keep the identity directories of the factory, gateway, watchdog and operator fresh, never torn."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from factory_server.identity.ca import PART_TTL_S, CertificateAuthority, Clock, half_life, utc_now
from factory_server.identity.keyfiles import private_directory, write_directory
from factory_server.identity.mint import OPERATOR_TOKEN_TTL_S, TokenMint
from wire.errors import Unauthenticated
from wire.identity import (
    CA_FILE,
    CERTIFICATE_FILE,
    FACTORY_AUTHORITY,
    KEY_FILE,
    TOKEN_FILE,
    Identity,
    IdentityFile,
    load_identity,
    operator_spiffe,
    part_spiffe,
    thumbprint,
)
from wire.policy import ADMIN
from wire.tokens import TokenVerifier

LOG = logging.getLogger("hyperfactory.identity")

LOOK_EVERY_S: Final = 60.0
VERSIONS_KEPT: Final = 3
CURRENT: Final = "current"
OPERATOR: Final = "local"


@dataclass(frozen=True, slots=True)
class _Holder:
    """Whose directory it is, and what its certificate says."""

    who: str
    spiffe: str
    dns_names: tuple[str, ...] = ()
    with_token: bool = False


HOLDERS: Final = (
    _Holder("factory", part_spiffe("factory"), (FACTORY_AUTHORITY, "localhost")),
    _Holder("gateway", part_spiffe("gateway"), ("gateway.svc", "localhost")),
    _Holder("watchdog", part_spiffe("watchdog"), ("watchdog.svc",)),
    _Holder("operator", operator_spiffe(OPERATOR), (), with_token=True),
)


class IdentityDirectory:
    """`<home>/{factory,gateway,watchdog,operator}`: links to versions that never change once they are there.

    All of one holder lies in `<home>/.versions/<who>`, whose `current` is such a link as well: this directory
    alone can be shown to a container, without anybody else's key in it.
    """

    def __init__(
        self, home: Path, ca: CertificateAuthority, mint: TokenMint, *, now: Clock = utc_now
    ) -> None:
        self._home = home
        self._ca = ca
        self._mint = mint
        self._now = now

    def path(self, who: str) -> Path:
        """The directory that a process of this name reads."""
        return self._home / who

    def file(self, who: str) -> IdentityFile:
        """The identity of this name, followed as it is renewed."""
        return IdentityFile(self.path(who))

    def renew(self) -> list[str]:
        """Bring every directory up to date; says whose were written. Call once before serving."""
        private_directory(self._home)
        private_directory(self._versions)
        return [holder.who for holder in HOLDERS if self._renew(holder)]

    async def run(self) -> None:
        """Renew until cancelled; belongs to the caller's TaskGroup."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                renewed = await asyncio.to_thread(self.renew)
            except OSError:
                # Half a life is left for the next attempts.
                LOG.exception("cannot renew identities", extra={"action": "identity_renewal_failed"})
                continue
            if renewed:
                LOG.info("identities renewed", extra={"action": "identity_renewed", "holders": renewed})

    @property
    def _versions(self) -> Path:
        return self._home / ".versions"

    def _versions_of(self, holder: _Holder) -> Path:
        return self._versions / holder.who

    def _renew(self, holder: _Holder) -> bool:
        shown = self._shown(holder)
        certified = shown if shown is not None and self._is_fresh(shown) else self._issue(holder)
        token = self._token(holder, certified)
        if certified is shown and token == shown.token:
            return False
        self._write(holder, certified, token)
        return True

    def _shown(self, holder: _Holder) -> Identity | None:
        current = self._versions_of(holder) / CURRENT
        return load_identity(current) if current.is_dir() else None

    def _is_fresh(self, shown: Identity) -> bool:
        return shown.ca_pem == self._ca.bundle_pem and self._now() < half_life(shown.certificate_pem)

    def _issue(self, holder: _Holder) -> Identity:
        return self._ca.issue(holder.spiffe, holder.dns_names, ttl_s=PART_TTL_S)

    def _token(self, holder: _Holder, certified: Identity) -> str:
        """The token that goes with this certificate: the present one while it is fresh."""
        if not holder.with_token:
            return ""
        bound = thumbprint(certified.certificate_pem)
        if certified.token and self._is_fresh_token(certified.token, bound):
            return certified.token
        return self._mint.mint(holder.spiffe, thumbprint=bound, scopes={ADMIN}, ttl_s=OPERATOR_TOKEN_TTL_S)

    def _is_fresh_token(self, token: str, bound: str) -> bool:
        now = self._now().timestamp()
        try:
            claims = TokenVerifier(self._mint.jwks, now=lambda: now).verify(token, thumbprint=bound)
        except Unauthenticated:
            return False  # of another key, or over
        return now < (claims.issued_at + claims.expires_at) / 2

    def _write(self, holder: _Holder, identity: Identity, token: str) -> None:
        files = {
            CERTIFICATE_FILE: identity.certificate_pem,
            KEY_FILE: identity.key_pem,
            CA_FILE: identity.ca_pem,
        }
        if token:
            files[TOKEN_FILE] = token.encode()
        versions = private_directory(self._versions_of(holder))
        unique = f"{self._now():%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}"
        write_directory(versions / unique, files)
        _point(versions / CURRENT, Path(unique))
        _point(self.path(holder.who), (versions / CURRENT).relative_to(self._home))
        self._sweep(versions)

    def _sweep(self, versions: Path) -> None:
        """Drop old versions; a reader that has just resolved the link still finds the one before."""
        shown = (versions / CURRENT).resolve()
        there = sorted(path for path in versions.iterdir() if not path.is_symlink())
        for version in there[:-VERSIONS_KEPT]:
            if version != shown:
                shutil.rmtree(version, ignore_errors=True)


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in one step for whoever reads it."""
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".{link.name}-{secrets.token_hex(4)}")
    fresh.symlink_to(target)
    fresh.replace(link)
