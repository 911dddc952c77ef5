"""Who is at the other end of a call: the verified client certificate, and the token shown with it."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from wire.errors import Unauthenticated
from wire.identity import SpiffeId, parse_spiffe, thumbprint
from wire.policy import Caller, Principal, Row, needs_token
from wire.tokens import Claims

FORWARDED_CERTIFICATE: Final = "x-forwarded-tls-client-cert"
FORWARDED_MAX_CHARS: Final = 8192
CERTIFICATES_MAX: Final = 1024

_PRINCIPALS: Final = {
    "operator": Principal.OPERATOR,
    "agent": Principal.AGENT,
    "watchdog": Principal.WATCHDOG,
    "gateway": Principal.GATEWAY,
    "factory": Principal.FACTORY,
}
# The subject as grpc spells it (RFC 2253); a comma inside a value is escaped.
_GENERATION_RE = re.compile(rb"(?:^|(?<!\\),)OU=g([0-9]{1,18})(?=,|$)")


class CallContext(Protocol):
    """What this module asks of a servicer's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...
    def invocation_metadata(self) -> Any: ...
    def peer(self) -> str: ...


class Verifier(Protocol):
    """Verifies a token shown with the certificate of this thumbprint."""

    def verify(self, token: str, *, thumbprint: str) -> Claims: ...


GenerationCheck = Callable[[str, str, int], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """What a certificate says."""

    spiffe: SpiffeId
    uri: str
    generation: int
    thumbprint: str


class PeerReader:
    """Finds out who calls; certificates are read once and remembered."""

    def __init__(
        self,
        verifier: Verifier | None,
        *,
        generation_check: GenerationCheck | None = None,
        trusted_caller: Caller | None = None,
    ) -> None:
        self._verifier = verifier
        self._generation_check = generation_check
        self._trusted = trusted_caller
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()

    def caller(self, context: CallContext, row: Row) -> Caller:
        """The caller, proven; raises Unauthenticated."""
        shown = context.auth_context()
        pem = first(shown, "x509_pem_cert")
        if pem is None:
            # Only a port without TLS has no certificate: the control socket, guarded by the file system.
            if self._trusted is None or "ssl_tls_version" in shown:
                raise Unauthenticated("no client certificate", reason="CERTIFICATE_INVALID")
            return self._trusted
        token, forwarded = _credentials(context.invocation_metadata())
        peer = self._peer(pem, shown)
        if forwarded is not None and peer.spiffe.kind == "gateway":
            peer = self._forwarded_peer(forwarded)
        caller = self._identify(peer, token or "", row, context.peer())
        if caller.principal is Principal.AGENT and self._generation_check is not None:
            self._generation_check(caller.crew, caller.agent, caller.generation)
        return caller

    def _peer(self, pem: bytes, shown: Mapping[str, Iterable[bytes]]) -> Peer:
        peer = self._peers.get(pem)
        if peer is None:
            peer = self._peers[pem] = _read_peer(pem, shown)
            if len(self._peers) > CERTIFICATES_MAX:
                self._peers.popitem(last=False)
        return peer

    def _forwarded_peer(self, header: str) -> Peer:
        from wire.forwarded import read_forwarded

        pem = header.encode()
        peer = self._peers.get(pem)
        if peer is None:
            peer = self._peers[pem] = read_forwarded(header)
            if len(self._peers) > CERTIFICATES_MAX:
                self._peers.popitem(last=False)
        return peer

    def _identify(self, peer: Peer, token: str, row: Row, address: str) -> Caller:
        principal = _PRINCIPALS[peer.spiffe.kind]
        if not needs_token(row, principal):
            return _caller(peer, principal, frozenset(), address)
        if self._verifier is None:
            raise Unauthenticated("tokens are not accepted here", reason="TOKEN_INVALID")
        claims = self._verifier.verify(token, thumbprint=peer.thumbprint)
        _match(peer, claims)
        return _caller(peer, principal, claims.scopes, address)


def first(shown: Mapping[str, Iterable[bytes]], key: str) -> bytes | None:
    values = shown.get(key)
    return next(iter(values), None) if values is not None else None


def _read_peer(pem: bytes, shown: Mapping[str, Iterable[bytes]]) -> Peer:
    # grpc has verified the chain and taken the certificate apart already.
    uris = list(shown.get("peer_uri", ()))
    if len(uris) != 1:
        raise Unauthenticated("client certificate has no identity of ours", reason="CERTIFICATE_INVALID")
    found = _GENERATION_RE.search(first(shown, "x509_subject") or b"")
    return make_peer(uris[0].decode(errors="replace"), int(found[1]) if found else 0, thumbprint(pem))


def make_peer(uri: str, generation: int, print_: str) -> Peer:
    spiffe = parse_spiffe(uri)
    if spiffe.kind == "agent" and generation < 1:
        raise Unauthenticated("an agent's certificate names its generation", reason="CERTIFICATE_INVALID")
    return Peer(spiffe, uri, generation, print_)


def _credentials(metadata: Any) -> tuple[str | None, str | None]:
    """The bearer token and the forwarded certificate; each may come once, and an empty one was sent, too."""
    token = forwarded = None
    for key, value in metadata or ():
        if key == "authorization":
            token = _once(token, _bearer(value))
        elif key == FORWARDED_CERTIFICATE:
            forwarded = _once(forwarded, value)
    return token, forwarded


def _once(before: str | None, value: str) -> str:
    if before is not None:
        raise Unauthenticated("credentials were sent twice")
    return value


def _bearer(value: str) -> str:
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("authorization is no bearer token", reason="TOKEN_INVALID")
    return token


def _match(peer: Peer, claims: Claims) -> None:
    """A token says of its holder what the certificate says."""
    spiffe = peer.spiffe
    agent = spiffe.name if spiffe.kind == "agent" else ""
    said = (claims.subject, claims.crew, claims.agent)
    if said != (peer.uri, spiffe.crew, agent) or (agent and claims.generation != peer.generation):
        raise Unauthenticated("token and client certificate name different callers", reason="TOKEN_INVALID")


def _caller(peer: Peer, principal: Principal, scopes: frozenset[str], address: str) -> Caller:
    return Caller(
        principal=principal,
        spiffe=peer.uri,
        name=peer.spiffe.name,
        crew=peer.spiffe.crew,
        agent=peer.spiffe.name if principal is Principal.AGENT else "",
        generation=peer.generation,
        scopes=scopes,
        peer=address,
        thumbprint=peer.thumbprint,
    )
