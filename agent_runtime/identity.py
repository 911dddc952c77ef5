"""The instance's identity as it is now: renewed by the factory, read by every connection and check."""

from __future__ import annotations

from hyperfactory.v1 import agent_service_pb2 as pb
from wire.errors import FieldViolation, Invalid
from wire.identity import TRUST_DOMAIN, Identity


class IdentityHolder:
    """Holds the newest identity and the keys that check others' tokens."""

    def __init__(self, message: pb.Identity) -> None:
        self._identity, self._jwks = _read(message)

    def current(self) -> Identity:
        return self._identity

    def jwks(self) -> str:
        return self._jwks

    def renew(self, message: pb.Identity) -> None:
        """Take a renewed identity over; connections in flight keep the old one."""
        self._identity, self._jwks = _read(message)


def _read(message: pb.Identity) -> tuple[Identity, str]:
    missing = [
        FieldViolation(f"identity.{name}", "is required")
        for name in ("certificate_pem", "key_pem", "ca_pem")
        if not getattr(message, name)
    ]
    if message.trust_domain not in ("", TRUST_DOMAIN):
        missing.append(FieldViolation("identity.trust_domain", f"must be '{TRUST_DOMAIN}'"))
    if missing:
        raise Invalid("identity is not complete", violations=missing)
    jwks = message.jwks or '{"keys": []}'
    return Identity(message.certificate_pem, message.key_pem, message.ca_pem, message.token), jwks
