"""The document is a pure function of the groups; it is never empty and never open to clients without mTLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.registry import Route
from gateway.routes import GROUPS, PUBLIC, KeyPair, Settings, group_names, routes, versioned
from hyperfactory.v1 import types_pb2
from wire.identity import agent_authority, agent_spiffe

STATES = [state for state in types_pb2.AgentState.values() if state]
GROUP = agent_authority("coder", "c1")


def route(name: str, *, group: str = "", state: int = types_pb2.AGENT_STATE_READY, crew: str = "c1") -> Route:
    return Route(
        agent=f"id-{crew}-{name}",
        uid=f"uid-{name}",
        authority=agent_authority(name, crew),
        spiffe=agent_spiffe(crew, name),
        crew=crew,
        state=types_pb2.AgentState.ValueType(state),
        generation=1,
        socket=f"/run/{name}.sock",
        group=group,
    )


def settings(*groups: str) -> Settings:
    pairs = {group: KeyPair(f"/tls/{group}.crt", f"/tls/{group}.key") for group in groups}
    identity = KeyPair("/tls/gateway.crt", "/tls/gateway.key")
    return Settings(
        "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4", "/tls/ca.pem", identity, pairs
    )


AGENTS = st.lists(
    st.builds(
        route,
        st.from_regex(r"\A[a-z][a-z0-9-]{0,6}[a-z0-9]\Z"),
        group=st.sampled_from(["", GROUP, agent_authority("tester", "c2")]),
        state=st.sampled_from(STATES),
        crew=st.sampled_from(["c1", "c2"]),
    ),
    max_size=12,
)


def maps(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict):
        yield document
        for value in document.values():
            yield from maps(value)
    elif isinstance(document, list):
        for value in document:
            yield from maps(value)


@given(AGENTS, st.lists(st.sampled_from([GROUP, agent_authority("tester", "c2")]), unique=True))
def test_document_is_whole_for_any_agents(agents: list[Route], certified: list[str]) -> None:
    document = routes(agents, settings(*certified))
    http, tcp = document["http"], document["tcp"]
    # An empty map makes Traefik refuse the document; `tls: {}` of a router is the one that means something.
    for part in maps({"tls": document["tls"], "tcp": tcp}):
        assert part
    assert all(part for name, part in http.items())
    for router in http["routers"].values():
        assert router["tls"] == {}
        assert set(router["entryPoints"]) <= {PUBLIC, GROUPS}
        assert router["service"] == "ping@internal" or router["service"] in http["services"]
        assert all(name in http["middlewares"] | {"version": 1} for name in router.get("middlewares", ()))
    for service in http["services"].values():
        for member in service.get("weighted", {}).get("services", ()):
            assert member["name"] in http["services"]
        transport = service.get("loadBalancer", {}).get("serversTransport")
        assert transport is None or transport in http["serversTransports"]
    assert document["tls"]["options"]["default"]["clientAuth"] == {
        "caFiles": ["/tls/ca.pem"],
        "clientAuthType": "RequireAndVerifyClientCert",
    }


@given(AGENTS)
def test_order_of_the_agents_does_not_matter(agents: list[Route]) -> None:
    unique = list({agent.authority: agent for agent in agents}.values())
    one, two = routes(unique, settings(GROUP)), routes(reversed(unique), settings(GROUP))
    assert versioned(one) == versioned(two)


def test_unique_agents_need_no_route_of_their_own() -> None:
    assert routes([route("a"), route("b")], settings()) == routes([], settings())


@pytest.mark.parametrize("state", STATES)
def test_only_members_that_serve_are_servers(state: int) -> None:
    agents = [route("coder-1", group=GROUP), route("coder-2", group=GROUP, state=state)]
    services = routes(agents, settings(GROUP))["http"]["services"]
    members = [member["name"] for member in services["group_coder_crew-c1_svc"]["weighted"]["services"]]
    serves = state in (types_pb2.AGENT_STATE_READY, types_pb2.AGENT_STATE_BUSY)
    assert members == ["coder-1_crew-c1_svc", "coder-2_crew-c1_svc"][: 2 if serves else 1]


def test_member_is_pinned_to_its_identity() -> None:
    transports = routes([route("coder-1", group=GROUP)], settings(GROUP))["http"]["serversTransports"]
    assert transports["coder-1_crew-c1_svc"] == {
        "serverName": "coder-1.crew-c1.svc",
        "rootCAs": ["/tls/ca.pem"],
        "certificates": [{"certFile": "/tls/gateway.crt", "keyFile": "/tls/gateway.key"}],
        "peerCertURI": "spiffe://hyperfactory.local/crew/c1/agent/coder-1",
    }


def test_group_without_a_certificate_has_no_route() -> None:
    agents = [route("coder-1", group=GROUP)]
    assert group_names(agents) == {GROUP}
    assert routes(agents, settings()) == routes([], settings())


def test_keys_of_different_names_differ() -> None:
    one, two = route("a-crew-b", group=GROUP, crew="c1"), route("a", group=GROUP, crew="b-crew-c1")
    assert len(routes([one, two], settings(GROUP))["http"]["serversTransports"]) == 2


def test_version_changes_with_the_content_and_is_in_the_answer() -> None:
    first, body = versioned(routes([], settings()))
    second, _ = versioned(routes([route("coder-1", group=GROUP)], settings(GROUP)))
    assert first != second
    headers = json.loads(body)["http"]["middlewares"]["version"]["headers"]
    assert headers == {"customResponseHeaders": {"X-Hyperfactory-Document": first}}


def test_clients_without_h2_are_led_to_the_factorys_http_port() -> None:
    tcp = routes([], replace(settings(), factory_http="127.0.0.1:5"))["tcp"]
    http, grpc = tcp["routers"]["factory_http"], tcp["routers"]["factory"]
    assert http["priority"] > grpc["priority"]
    assert http["rule"].endswith("!ALPN(`h2`)")
    assert http["tls"] == grpc["tls"] == {"passthrough": True}
    assert tcp["services"]["factory_http"]["loadBalancer"]["servers"] == [{"address": "127.0.0.1:5"}]
    assert "factory_http" not in routes([], settings())["tcp"]["services"]
