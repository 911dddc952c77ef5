"""Every hostile credential is refused on a real mTLS server, with the reason of its kind."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from grpc_health.v1 import health_pb2, health_pb2_grpc

from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.mint import TokenMint
from hyperfactory.v1 import agent_service_pb2, agent_service_pb2_grpc
from hyperfactory.v1 import factory_service_pb2 as pb
from hyperfactory.v1 import factory_service_pb2_grpc as stubs
from wire.channels import open_control_channel
from wire.errors import Denied, FactoryError, Refused, Unauthenticated, Unavailable
from wire.identity import FACTORY_AUTHORITY, Identity, agent_authority, operator_spiffe, thumbprint
from wire.policy import PolicyTable, Principal, Resource, Row
from wire.status import from_rpc_error

CALL_MAX_S = 10.0
REQUEST = pb.GetAgentRequest(agent="ag-0123456789ab")


async def failure(call: Any) -> FactoryError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def get_agent(world: Any, target: str, identity: Identity) -> Any:
    channel = await world.dial(target, identity)
    return await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S)


async def test_an_operator_with_certificate_and_token_is_let_in(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    await get_agent(world, target, world.operator("ada", "reviewer"))
    caller = world.callers[0]
    assert (caller.principal, caller.name, caller.scopes) == (Principal.OPERATOR, "ada", {"reviewer"})


@pytest.mark.parametrize("part", ["watchdog", "gateway"])
async def test_parts_need_no_token(world: Any, factory: Any, part: str) -> None:
    target = await world.serve(factory(world))
    await get_agent(world, target, world.part(part))
    assert world.callers[0].name == part


async def test_without_a_client_certificate_nothing_is_served(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    credentials = grpc.ssl_channel_credentials(world.ca.bundle_pem)
    options = [("grpc.ssl_target_name_override", FACTORY_AUTHORITY)]
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        error = await failure(stubs.FactoryServiceStub(channel).GetAgent(REQUEST, timeout=CALL_MAX_S))
    assert isinstance(error, Unavailable)
    assert world.callers == []


async def test_a_certificate_of_another_authority_is_refused(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    foreign = CertificateAuthority.open(world.home / "foreign")
    uri = operator_spiffe("ada")
    stranger = world.with_token(foreign.issue(uri, [], ttl_s=3600), uri, ("admin",))
    stranger = dataclasses.replace(stranger, ca_pem=world.ca.bundle_pem)
    assert isinstance(await failure(get_agent(world, target, stranger)), Unavailable)
    assert world.callers == []


async def test_an_expired_certificate_is_refused(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    past = CertificateAuthority.open(world.home / "ca", now=lambda: datetime.now(UTC) - timedelta(hours=2))
    uri = operator_spiffe("ada")
    late = world.with_token(past.issue(uri, [], ttl_s=60), uri, ("admin",))
    assert isinstance(await failure(get_agent(world, target, late)), Unavailable)
    assert world.callers == []


@pytest.mark.parametrize("uri", ["spiffe://elsewhere.local/factory", "spiffe://hyperfactory.local/admin"])
async def test_a_certificate_without_an_identity_of_ours_is_refused(
    world: Any, factory: Any, uri: str
) -> None:
    target = await world.serve(factory(world))
    error = await failure(get_agent(world, target, world.ca.issue(uri, [], ttl_s=60)))
    assert isinstance(error, Unauthenticated)
    assert error.reason == "CERTIFICATE_INVALID"


def forge(world: Any, identity: Identity, *, key: Any = None, alg: str = "EdDSA", **changes: Any) -> Identity:
    """The identity with its token rewritten: other claims or header, signed by `key` or by the real one."""
    claims = jwt.decode(identity.token, options={"verify_signature": False})
    header = jwt.get_unverified_header(identity.token)
    for name, value in changes.items():
        where = header if name.startswith("header_") else claims
        name = name.removeprefix("header_").replace("__", "#")
        where.pop(name, None) if value is None else where.__setitem__(name, value)
    signer = key if key is not None else world.mint._key(world.mint._names()[-1])
    header.pop("alg", None)
    token = jwt.encode(claims, None if alg == "none" else signer, algorithm=alg, headers=header)
    return dataclasses.replace(identity, token=token)


def _now() -> int:
    return int(datetime.now(UTC).timestamp())


HOSTILE: dict[str, Any] = {
    "signed by a foreign key": lambda: {"key": ed25519.Ed25519PrivateKey.generate()},
    "no signature at all": lambda: {"alg": "none"},
    "HMAC with a guessed secret": lambda: {"alg": "HS256", "key": "k" * 40},
    "unknown kid": lambda: {"header_kid": "other"},
    "kid that is a path": lambda: {"header_kid": "../../etc/passwd"},
    "embedded jwk": lambda: {"header_jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}},
    "jku": lambda: {"header_jku": "https://evil.example/keys"},
    "crit": lambda: {"header_crit": ["exp"]},
    "other type": lambda: {"header_typ": "JWT"},
    "wrong audience": lambda: {"aud": "other"},
    "audience in a list": lambda: {"aud": ["hyperfactory", "other"]},
    "wrong issuer": lambda: {"iss": "https://factory.svc.evil"},
    "no issuer": lambda: {"iss": None},
    "no audience": lambda: {"aud": None},
    "no binding": lambda: {"cnf": None},
    "binding is a string": lambda: {"cnf": "x5t#S256"},
    "bound to nothing": lambda: {"cnf": {"x5t#S256": ""}},
    "bound to another certificate": lambda: {"cnf": {"x5t#S256": "A" * 43}},
    "another subject": lambda: {"sub": operator_spiffe("eve")},
    "no subject": lambda: {"sub": None},
    "no id": lambda: {"jti": None},
    "scope is a list": lambda: {"scope": ["admin"]},
    "unknown scope": lambda: {"scope": "admin root"},
    "no scope": lambda: {"scope": None},
    "generation is true": lambda: {"gen": True},
    "an agent's token": lambda: {"agent": "planner", "crew": "c1"},
    "expiry is a string": lambda: {"exp": str(_now() + 300)},
    "no expiry": lambda: {"exp": None},
    "lives for a year": lambda: {"exp": _now() + 31_536_000},
    "from the future": lambda: {"nbf": _now() + 60, "iat": _now() + 60},
    "expired is infinite": lambda: {"exp": 1e308},
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_token_is_refused(world: Any, factory: Any, case: str) -> None:
    target = await world.serve(factory(world))
    forged = forge(world, world.operator(), **HOSTILE[case]())
    error = await failure(get_agent(world, target, forged))
    assert isinstance(error, Unauthenticated), error
    assert error.reason == "TOKEN_INVALID"
    assert world.callers == []


async def test_an_unchanged_forgery_is_let_in(world: Any, factory: Any) -> None:
    """The harness of the cases above is sound: without a change, its token verifies."""
    target = await world.serve(factory(world))
    await get_agent(world, target, forge(world, world.operator()))
    assert len(world.callers) == 1


async def test_claims_widened_under_the_old_signature_are_refused(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    honest = world.operator("ada", "reviewer")
    head, body, signature = honest.token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["scope"] = "admin"
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    widened = dataclasses.replace(honest, token=f"{head}.{body}.{signature}")
    error = await failure(get_agent(world, target, widened))
    assert error.reason == "TOKEN_INVALID"


async def test_an_expired_token_says_so_and_leeway_is_five_seconds(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    now = _now()
    late = forge(world, world.operator(), iat=now - 60, nbf=now - 60, exp=now - 6)
    assert (await failure(get_agent(world, target, late))).reason == "TOKEN_EXPIRED"
    just = forge(world, world.operator(), iat=now - 60, nbf=now - 60, exp=now - 1)
    await get_agent(world, target, just)


async def test_a_missing_token_says_so(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    bare = dataclasses.replace(world.operator(), token="")
    assert (await failure(get_agent(world, target, bare))).reason == "TOKEN_MISSING"


@pytest.mark.parametrize("value", ["Bearer", "Basic YTpi", "", "Bearer a b c"])
async def test_a_mangled_authorization_is_refused(world: Any, factory: Any, value: str) -> None:
    target = await world.serve(factory(world))
    channel = await world.dial(target, dataclasses.replace(world.operator(), token=""))
    call = stubs.FactoryServiceStub(channel).GetAgent(
        REQUEST, metadata=(("authorization", value),), timeout=CALL_MAX_S
    )
    assert isinstance(await failure(call), Unauthenticated)


async def test_two_tokens_are_refused(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    operator = world.operator()
    channel = await world.dial(target, dataclasses.replace(operator, token=""))
    line = ("authorization", f"Bearer {operator.token}")
    error = await failure(
        stubs.FactoryServiceStub(channel).GetAgent(REQUEST, metadata=(line, line), timeout=CALL_MAX_S)
    )
    assert isinstance(error, Unauthenticated)


async def test_a_stolen_token_is_useless_with_another_certificate(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    victim, thief = world.operator("ada"), world.operator("ada")
    error = await failure(get_agent(world, target, dataclasses.replace(thief, token=victim.token)))
    assert error.reason == "TOKEN_INVALID"


async def test_a_token_of_another_mint_is_refused(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    operator = world.operator()
    foreign = TokenMint.open(world.home / "foreign-mint").mint(
        operator_spiffe("ada"), thumbprint=thumbprint(operator.certificate_pem), scopes=["admin"], ttl_s=300
    )
    error = await failure(get_agent(world, target, dataclasses.replace(operator, token=foreign)))
    assert error.reason == "TOKEN_INVALID"


async def test_a_scope_that_does_not_reach_is_denied(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    channel = await world.dial(target, world.operator("ada", "reviewer"))
    request = pb.StopAgentRequest(agent="ag-0123456789ab", request_id="9b0d6e39-38f7-4ab8-9a51-2f7f3cde9a50")
    error = await failure(stubs.FactoryServiceStub(channel).StopAgent(request, timeout=CALL_MAX_S))
    assert isinstance(error, Denied)
    assert (error.reason, error.metadata["scope"]) == ("SCOPE_MISSING", "admin")
    assert world.audited[-1].code == "PERMISSION_DENIED"


async def test_an_agent_of_an_older_generation_is_fenced(world: Any, factory: Any) -> None:
    current = 2

    def check(crew: str, name: str, generation: int) -> None:
        if generation < current:
            raise Refused("a newer instance exists", reason="STALE_GENERATION", metadata={"generation": "2"})

    target = await world.serve(factory(world), generation_check=check)
    for generation, refused in ((1, True), (2, False)):
        channel = await world.dial(target, world.agent(generation=generation))
        call = stubs.FactoryServiceStub(channel).GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S)
        if refused:
            error = await failure(call)
            assert isinstance(error, Refused)
            assert (error.reason, dict(error.metadata)) == ("STALE_GENERATION", {"generation": "2"})
            assert world.audited[-1].reason == "STALE_GENERATION"
        else:
            await call
    assert [caller.generation for caller in world.callers] == [2]


@pytest.mark.parametrize("change", [{"crew": "c2"}, {"agent": "coder"}, {"gen": 7}])
async def test_an_agents_token_must_say_what_its_certificate_says(
    world: Any, factory: Any, change: dict[str, Any]
) -> None:
    target = await world.serve(factory(world))
    channel = await world.dial(target, forge(world, world.agent(), **change))
    error = await failure(stubs.FactoryServiceStub(channel).GetJwks(pb.GetJwksRequest(), timeout=CALL_MAX_S))
    assert error.reason == "TOKEN_INVALID"


async def test_agents_are_served_within_their_crew_only(world: Any, agent: Any) -> None:
    me = world.agent("c1", "coder")
    target = await world.serve(agent(world), lambda: me, own=lambda: ("c1", "coder"))
    for crew, refused in (("c1", False), ("c2", True)):
        channel = await world.dial(target, world.agent(crew, "planner"), agent_authority("coder", "c1"))
        call = agent_service_pb2_grpc.AgentServiceStub(channel).Describe(
            agent_service_pb2.DescribeRequest(), timeout=CALL_MAX_S
        )
        if refused:
            assert isinstance(await failure(call), Denied)
        else:
            await call
    assert [caller.crew for caller in world.callers] == ["c1"]


async def test_a_rule_of_self_lets_in_the_agent_itself_only(world: Any, agent: Any) -> None:
    rows = dict(world.policy.rows)
    name = "/hyperfactory.v1.AgentService/Describe"
    rows[name] = Row(name, frozenset({Principal.AGENT}), resource=Resource.SELF)
    world.policy = PolicyTable(rows)
    me = world.agent("c1", "coder")
    target = await world.serve(agent(world), lambda: me, own=lambda: ("c1", "coder"))
    for caller, refused in (("coder", False), ("planner", True)):
        channel = await world.dial(target, world.agent("c1", caller), agent_authority("coder", "c1"))
        call = agent_service_pb2_grpc.AgentServiceStub(channel).Describe(
            agent_service_pb2.DescribeRequest(), timeout=CALL_MAX_S
        )
        if refused:
            assert isinstance(await failure(call), Denied)
        else:
            await call


async def test_before_its_identity_an_agent_serves_no_other(world: Any, agent: Any) -> None:
    me = world.agent("c1", "coder")
    target = await world.serve(agent(world), lambda: me, own=lambda: ("", ""))
    channel = await world.dial(target, world.agent("c1", "planner"), agent_authority("coder", "c1"))
    call = agent_service_pb2_grpc.AgentServiceStub(channel).Describe(
        agent_service_pb2.DescribeRequest(), timeout=CALL_MAX_S
    )
    assert isinstance(await failure(call), Denied)


@pytest.mark.parametrize(("crew", "refused"), [("c1", False), ("c2", True), ("", True)])
async def test_at_the_factory_the_rule_reads_the_requests_crew(
    world: Any, factory: Any, crew: str, refused: bool
) -> None:
    rows = dict(world.policy.rows)
    name = "/hyperfactory.v1.FactoryService/SpawnAgent"
    rows[name] = Row(name, frozenset({Principal.AGENT}), resource=Resource.OWN_CREW)
    world.policy = PolicyTable(rows)
    channel = await world.dial(await world.serve(factory(world), validator=None), world.agent("c1"))
    call = stubs.FactoryServiceStub(channel).SpawnAgent(pb.SpawnAgentRequest(crew=crew), timeout=CALL_MAX_S)
    if refused:
        assert isinstance(await failure(call), Denied)
    else:
        await call


async def test_a_server_with_another_name_is_not_spoken_to(world: Any, agent: Any) -> None:
    me = world.agent("c1", "coder")
    target = await world.serve(agent(world), lambda: me, own=lambda: ("c1", "coder"))
    channel = await world.dial(target, world.agent(), agent_authority("reviewer", "c1"))
    error = await failure(
        agent_service_pb2_grpc.AgentServiceStub(channel).Describe(
            agent_service_pb2.DescribeRequest(), timeout=CALL_MAX_S
        )
    )
    assert isinstance(error, Unavailable)


async def test_the_control_socket_is_the_factorys(world: Any, agent: Any, trusted: Any) -> None:
    target = await world.serve(agent(world), tls=False, trusted_caller=trusted)
    async with open_control_channel(target) as channel:
        await agent_service_pb2_grpc.AgentServiceStub(channel).Describe(
            agent_service_pb2.DescribeRequest(), timeout=CALL_MAX_S
        )
    assert world.callers[0].principal is Principal.FACTORY


async def test_a_port_without_tls_serves_nobody_unless_told_whom(world: Any, agent: Any) -> None:
    target = await world.serve(agent(world), tls=False)
    async with open_control_channel(target) as channel:
        error = await failure(
            agent_service_pb2_grpc.AgentServiceStub(channel).Describe(
                agent_service_pb2.DescribeRequest(), timeout=CALL_MAX_S
            )
        )
    assert error.reason == "CERTIFICATE_INVALID"


def sanitized(identity: Identity) -> str:
    leaf = identity.certificate_pem.split(b"-----END CERTIFICATE-----")[0]
    return b"".join(leaf.split(b"\n")[1:]).decode()


async def test_a_certificate_forwarded_by_the_gateway_is_the_callers(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    operator = world.operator("ada")
    channel = await world.dial(target, world.part("gateway"))
    metadata = (
        ("x-forwarded-tls-client-cert", sanitized(operator)),
        ("authorization", f"Bearer {operator.token}"),
    )
    await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, metadata=metadata, timeout=CALL_MAX_S)
    assert world.callers[0].name == "ada"


async def test_a_certificate_forwarded_by_anyone_else_is_ignored(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    channel = await world.dial(target, world.part("watchdog"))
    metadata = (("x-forwarded-tls-client-cert", sanitized(world.operator("ada"))),)
    await stubs.FactoryServiceStub(channel).GetAgent(REQUEST, metadata=metadata, timeout=CALL_MAX_S)
    assert world.callers[0].name == "watchdog"


@pytest.mark.parametrize("text", ["", "x", "AAAA", "%%%", "A" * 6000])
async def test_a_forwarded_certificate_that_cannot_be_read_is_refused(
    world: Any, factory: Any, text: str
) -> None:
    target = await world.serve(factory(world))
    channel = await world.dial(target, world.part("gateway"))
    call = stubs.FactoryServiceStub(channel).GetAgent(
        REQUEST, metadata=(("x-forwarded-tls-client-cert", text),), timeout=CALL_MAX_S
    )
    assert (await failure(call)).reason == "CERTIFICATE_INVALID"
    assert world.callers == []


async def test_health_asks_for_a_certificate_only(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    channel = await world.dial(target, dataclasses.replace(world.operator(), token=""))
    answer = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=CALL_MAX_S
    )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_every_refusal_is_audited_with_its_peer(world: Any, factory: Any) -> None:
    target = await world.serve(factory(world))
    bare = dataclasses.replace(world.operator(), token="")
    await failure(get_agent(world, target, bare))
    record = world.audited[0]
    assert (record.code, record.reason, record.caller) == ("UNAUTHENTICATED", "TOKEN_MISSING", None)
    assert record.method == "/hyperfactory.v1.FactoryService/GetAgent"
    assert record.peer.startswith("unix:")


async def test_a_verified_token_costs_next_to_nothing_the_second_time(world: Any) -> None:
    from wire.tokens import TokenVerifier

    operator = world.operator()
    verifier = TokenVerifier(world.mint.jwks)
    bound = thumbprint(operator.certificate_pem)
    verifier.verify(operator.token, thumbprint=bound)
    started = time.process_time()
    for _ in range(1000):
        verifier.verify(operator.token, thumbprint=bound)
    assert time.process_time() - started < 0.05
