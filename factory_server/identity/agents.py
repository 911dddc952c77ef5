"""The identity of one instance of an agent: its certificate, and a token that names its generation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from factory_server.core.model import AgentRow
from factory_server.identity.ca import CertificateAuthority, Clock, half_life, utc_now
from factory_server.identity.mint import AGENT_TOKEN_TTL_S, TokenMint
from hyperfactory.v1 import agent_service_pb2
from wire.identity import TRUST_DOMAIN, Identity, agent_spiffe, thumbprint

CERTIFICATES_MAX: Final = 512


class AgentIdentities:
    """Fits `core.ports.Identities`. A certificate is shown until its half-life, a token is fresh each time."""

    def __init__(self, ca: CertificateAuthority, mint: TokenMint, *, now: Clock = utc_now) -> None:
        self._ca = ca
        self._mint = mint
        self._now = now
        self._certified: OrderedDict[tuple[str, int], Identity] = OrderedDict()

    def identify(self, agent: AgentRow) -> agent_service_pb2.Identity:
        """Certificate, key and token for this generation."""
        certified = self._certificate(agent)
        token = self._mint.mint(
            agent_spiffe(agent.crew, agent.name),
            thumbprint=thumbprint(certified.certificate_pem),
            scopes={agent.scope},
            ttl_s=AGENT_TOKEN_TTL_S,
            crew=agent.crew,
            agent=agent.name,
            generation=agent.generation,
        )
        return agent_service_pb2.Identity(
            certificate_pem=certified.certificate_pem,
            key_pem=certified.key_pem,
            ca_pem=certified.ca_pem,
            token=token,
            jwks=self._mint.jwks(),
            trust_domain=TRUST_DOMAIN,
        )

    def token_ttl_s(self) -> float:
        """How long a token lives; identities are renewed at half of it."""
        return AGENT_TOKEN_TTL_S

    def _certificate(self, agent: AgentRow) -> Identity:
        # A new certificate means new connections to every mate: not each time the token is renewed.
        key = (agent.uid, agent.generation)
        known = self._certified.get(key)
        if known is None or self._now() >= half_life(known.certificate_pem):
            known = self._certified[key] = self._ca.issue_agent(agent.crew, agent.name, agent.generation)
            if len(self._certified) > CERTIFICATES_MAX:
                self._certified.popitem(last=False)
        return known
