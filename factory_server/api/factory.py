"""FactoryService: what the factory is, identities, audit; the registry's methods are beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from factory_server.api import encode, pages
from factory_server.api.encode import timestamp
from factory_server.api.registry import RegistryMethods, RegistryUses
from factory_server.core import manifest
from factory_server.core.errors import Denied, FieldViolation, Invalid
from factory_server.core.sandbox import DriverInfo, Enforcement
from factory_server.services.durations import seconds
from hyperfactory.v1 import factory_service_pb2 as pb
from hyperfactory.v1 import factory_service_pb2_grpc
from wire.identity import TRUST_DOMAIN, Identity
from wire.policy import current_caller

TOKEN_TTL_S = 3600.0
ENFORCEMENTS = {
    Enforcement.ENFORCED: pb.ENFORCEMENT_ENFORCED,
    Enforcement.PARTIAL: pb.ENFORCEMENT_PARTIAL,
    Enforcement.ABSENT: pb.ENFORCEMENT_ABSENT,
}


class Mint(Protocol):
    """Signs tokens."""

    def mint(self, subject: str, *, thumbprint: str, scopes: Iterable[str], ttl_s: float) -> str:
        """A token for the holder of this certificate."""

    def jwks(self) -> str:
        """The keys that check tokens."""


@dataclass(frozen=True, slots=True)
class FactoryFacts:
    """What this process is, beside its use cases."""

    version: str
    gateway: str
    driver: DriverInfo
    mint: Mint
    certify_gateway: Callable[[str], tuple[Identity, datetime]]
    """Issue a certificate with the gateway's SPIFFE id for a DNS name."""


class FactoryServicer(RegistryMethods, factory_service_pb2_grpc.FactoryServiceServicer):
    """What the contract says of FactoryService."""

    def __init__(self, uses: RegistryUses, facts: FactoryFacts) -> None:
        self._u = uses
        self._facts = facts

    async def GetFactoryInfo(
        self, request: pb.GetFactoryInfoRequest, context: Any
    ) -> pb.GetFactoryInfoResponse:
        info = self._facts.driver
        return pb.GetFactoryInfoResponse(
            version=self._facts.version,
            driver=info.name,
            tier=info.tier,
            isolation=[
                pb.IsolationProperty(name=p.name, enforcement=ENFORCEMENTS[p.enforcement], reason=p.reason)
                for p in info.properties
            ],
            manifest_bytes_max=manifest.MANIFEST_BYTES_MAX,
            members_max=manifest.MEMBERS_MAX,
            gateway=self._facts.gateway,
            trust_domain=TRUST_DOMAIN,
        )

    async def IssueToken(self, request: pb.IssueTokenRequest, context: Any) -> pb.IssueTokenResponse:
        caller = current_caller()
        wanted = frozenset(request.scopes) or caller.scopes
        if not wanted <= caller.scopes:
            missing = " ".join(sorted(wanted - caller.scopes))
            raise Denied(
                f"cannot mint a token with scope '{missing}': the caller does not hold it",
                reason="SCOPE_MISSING",
                metadata={"method": "IssueToken", "scope": missing},
            )
        ttl_s = seconds(request.ttl, TOKEN_TTL_S)
        bound = request.certificate_thumbprint or caller.thumbprint
        token = self._facts.mint.mint(caller.spiffe, thumbprint=bound, scopes=wanted, ttl_s=ttl_s)
        return pb.IssueTokenResponse(token=token, expire_time=timestamp(_later(ttl_s)))

    async def IssueGatewayCertificate(
        self, request: pb.IssueGatewayCertificateRequest, context: Any
    ) -> pb.IssueGatewayCertificateResponse:
        for agent in self._u.registry.names().values():
            if f"{agent.name}.crew-{agent.crew}.svc" == request.dns_name:
                raise Denied(
                    f"cannot certify '{request.dns_name}' for the gateway: an agent answers to it",
                    metadata={"method": "IssueGatewayCertificate"},
                )
        if not request.dns_name.endswith(".svc") or ".crew-" not in request.dns_name:
            text = "is no name of a crew"
            raise Invalid(
                f"cannot certify '{request.dns_name}': it {text}",
                violations=[FieldViolation("dns_name", text, "NAME_FOREIGN")],
            )
        identity, ends = self._facts.certify_gateway(request.dns_name)
        return pb.IssueGatewayCertificateResponse(
            certificate_pem=identity.certificate_pem, key_pem=identity.key_pem, expire_time=timestamp(ends)
        )

    async def GetJwks(self, request: pb.GetJwksRequest, context: Any) -> pb.GetJwksResponse:
        return pb.GetJwksResponse(jwks=self._facts.mint.jwks())

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Any
    ) -> pb.ListAuditEventsResponse:
        page = pages.page_of(self._u.codec, "audit", request.page_size, request.page_token)
        found = await self._u.parts.store.list_audit(page)
        shown, token = pages.split(self._u.codec, "audit", page, found, "id")
        return pb.ListAuditEventsResponse(
            events=[encode.audit_event(r) for r in shown], next_page_token=token
        )


def _later(seconds_: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds_)
