"""Render what Traefik shall know, as a pure function of the groups and where things listen."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.registry import Route
from wire.identity import FACTORY_AUTHORITY

PUBLIC: Final = "public"
"""The entry point that everybody dials."""
GROUPS: Final = "groups"
"""The entry point on loopback to which the relay leads connections that name a group."""
GATEWAY_AUTHORITY: Final = "gateway.svc"
CONFIGZ_PATH: Final = "/configz"
VERSION_HEADER: Final = "X-Hyperfactory-Document"
AGENT_NAMES: Final = r"^[a-z0-9-]+\.crew-[a-z0-9-]+\.svc$"
RETRY_ATTEMPTS: Final = 3
RETRY_INTERVAL: Final = "20ms"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Files of a certificate and its key; their names change with their content, so that Traefik rereads."""

    certificate: str
    key: str

    def document(self) -> Json:
        return {"certFile": self.certificate, "keyFile": self.key}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things listen, and what the gateway shows and trusts."""

    factory: str
    relay: str
    members: str
    absent: str
    ca: str
    identity: KeyPair
    groups: Mapping[str, KeyPair] = field(default_factory=dict)
    """Certificates by group name. A group without one has no route yet."""
    factory_http: str = ""
    """Where the factory speaks HTTP/1.1; empty where it does not."""


def routes(agents: Iterable[Route], settings: Settings) -> Json:
    """The document: what is in it, Traefik serves, and nothing else. It has no empty maps."""
    served = _served(agents, settings)
    return {
        "tls": _tls(served, settings),
        "tcp": _tcp(settings),
        "http": _http(served, settings),
    }


def versioned(document: Json) -> tuple[str, bytes]:
    """The document's version and its bytes; `/configz` answers with the version once it is applied."""
    bare = json.dumps(document, sort_keys=True).encode()
    version = hashlib.sha256(bare).hexdigest()[:16]
    middlewares = document["http"]["middlewares"] | {
        "version": {"headers": {"customResponseHeaders": {VERSION_HEADER: version}}}
    }
    body = document | {"http": document["http"] | {"middlewares": middlewares}}
    return version, json.dumps(body, sort_keys=True).encode()


def group_names(agents: Iterable[Route]) -> frozenset[str]:
    """Groups with at least one member that serves."""
    return frozenset(agent.group for agent in agents if agent.group and agent.serving)


def _served(agents: Iterable[Route], settings: Settings) -> dict[str, list[Route]]:
    served: dict[str, list[Route]] = defaultdict(list)
    for agent in agents:
        if agent.serving and agent.group in settings.groups:
            served[agent.group].append(agent)
    return {group: sorted(served[group], key=lambda agent: agent.authority) for group in sorted(served)}


def _tls(served: Mapping[str, list[Route]], settings: Settings) -> Json:
    # The option must be called `default` and live beside the routes: under another name, or in another
    # document, there is a moment in which a router is open to clients without a certificate.
    tls: Json = {
        "options": {
            "default": {
                "minVersion": "VersionTLS12",
                "clientAuth": {"caFiles": [settings.ca], "clientAuthType": "RequireAndVerifyClientCert"},
            }
        },
        "stores": {"default": {"defaultCertificate": settings.identity.document()}},
    }
    if served:
        tls["certificates"] = [settings.groups[group].document() for group in served]
    return tls


def _tcp(settings: Settings) -> Json:
    factory = f"HostSNI(`{FACTORY_AUTHORITY}`) || HostSNI(`localhost`)"
    tcp: Json = {
        "routers": {
            "factory": {
                "entryPoints": [PUBLIC],
                "rule": factory,
                "priority": 100,
                "service": "factory",
                "tls": {"passthrough": True},
            },
            "agents": {
                "entryPoints": [PUBLIC],
                "rule": f"HostSNIRegexp(`{AGENT_NAMES}`)",
                "priority": 1,
                "service": "relay",
                "tls": {"passthrough": True},
            },
        },
        "services": {
            "factory": {"loadBalancer": {"servers": [{"address": settings.factory}]}},
            "relay": {"loadBalancer": {"servers": [{"address": settings.relay}]}},
        },
    }
    if settings.factory_http:
        # gRPC is HTTP/2 and says so in its first words; some of its clients offer HTTP/1.1 beside it.
        tcp["routers"]["factory_http"] = tcp["routers"]["factory"] | {
            "rule": f"({factory}) && !ALPN(`h2`)",
            "priority": 110,
            "service": "factory_http",
        }
        tcp["services"]["factory_http"] = {"loadBalancer": {"servers": [{"address": settings.factory_http}]}}
    return tcp


def _http(served: Mapping[str, list[Route]], settings: Settings) -> Json:
    routers: Json = {
        "configz": {
            "entryPoints": [PUBLIC],
            "rule": f"Host(`{GATEWAY_AUTHORITY}`) && Path(`{CONFIGZ_PATH}`)",
            "service": "ping@internal",
            "middlewares": ["version"],
            "tls": {},
        }
    }
    # A group loses its route before its last connection: those calls shall not hear 404, which is UNIMPLEMENTED.
    routers["absent"] = {
        "entryPoints": [GROUPS],
        "rule": "PathPrefix(`/`)",
        "priority": 1,
        "service": "absent",
        "tls": {},
    }
    services: Json = {"absent": {"loadBalancer": {"servers": [{"url": f"h2c://{settings.absent}"}]}}}
    # The whole certificate, not some fields of it: agents bind the caller's token to it.
    middlewares: Json = {"caller": {"passTLSClientCert": {"pem": True}}}
    document: Json = {"routers": routers, "services": services, "middlewares": middlewares}
    if served:
        middlewares["retry"] = {"retry": {"attempts": RETRY_ATTEMPTS, "initialInterval": RETRY_INTERVAL}}
        document["serversTransports"] = {}
    for group, agents in served.items():
        name = f"group_{_key(group)}"
        routers[name] = {
            "entryPoints": [GROUPS],
            "rule": f"Host(`{group}`)",
            "service": name,
            "middlewares": ["caller", "retry"],
            "tls": {},
        }
        members = [{"name": _key(agent.authority), "weight": 1} for agent in agents]
        services[name] = {"weighted": {"services": members}}
        for agent in agents:
            services[_key(agent.authority)] = _member(agent, settings)
            document["serversTransports"][_key(agent.authority)] = _transport(agent, settings)
    return document


def _member(agent: Route, settings: Settings) -> Json:
    balancer = {
        "servers": [{"url": f"https://{settings.members}"}],
        "serversTransport": _key(agent.authority),
    }
    return {"loadBalancer": balancer}


def _transport(agent: Route, settings: Settings) -> Json:
    # The server name leads the relay to this member's socket and is checked against its certificate; the
    # URI pins the identity as well.
    return {
        "serverName": agent.authority,
        "rootCAs": [settings.ca],
        "certificates": [settings.identity.document()],
        "peerCertURI": agent.spiffe,
    }


def _key(authority: str) -> str:
    # DNS labels have no underscore: two names never become one key.
    return authority.replace(".", "_")
