"""A real server with the guard and mTLS on a unix socket, and certificates and tokens from the real authority."""

# ruff: noqa: N802 - servicers bear the contract's names
from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.mint import TokenMint
from hyperfactory.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    crew_service_pb2,
    crew_service_pb2_grpc,
    factory_service_pb2,
    factory_service_pb2_grpc,
    profile_service_pb2,
)
from wire.channels import SERVER_OPTIONS, open_channel, server_credentials
from wire.guarded import AuditRecord
from wire.health import HealthServicer, add_health
from wire.identity import (
    FACTORY_AUTHORITY,
    Identity,
    agent_spiffe,
    operator_spiffe,
    part_spiffe,
    thumbprint,
)
from wire.interceptors import GuardInterceptor
from wire.policy import Caller, PolicyTable, Principal, current_caller
from wire.tokens import TokenVerifier
from wire.validation import RequestValidator

SERVICES = (
    factory_service_pb2.DESCRIPTOR.services_by_name["FactoryService"],
    crew_service_pb2.DESCRIPTOR.services_by_name["CrewService"],
    profile_service_pb2.DESCRIPTOR.services_by_name["ProfileService"],
    agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"],
)
CALL_MAX_S = 10.0


class World:
    """The authority of one test, and what its servers saw."""

    def __init__(self, home: Path, stack: AsyncExitStack) -> None:
        self.home = home
        self.stack = stack
        self.ca = CertificateAuthority.open(home / "ca")
        self.mint = TokenMint.open(home / "mint")
        self.audited: list[AuditRecord] = []
        self.callers: list[Caller] = []
        self.policy = PolicyTable.from_services(*SERVICES)

    def part(self, part: Any) -> Identity:
        return self.ca.issue(part_spiffe(part), [FACTORY_AUTHORITY, "localhost"], ttl_s=3600)

    def operator(self, user: str = "ada", *scopes: str) -> Identity:
        identity = self.ca.issue(operator_spiffe(user), [], ttl_s=3600)
        return self.with_token(identity, operator_spiffe(user), scopes or ("admin",))

    def agent(self, crew: str = "c1", name: str = "planner", generation: int = 1) -> Identity:
        identity = self.ca.issue_agent(crew, name, generation)
        return self.with_token(
            identity, agent_spiffe(crew, name), ("coder",), crew=crew, agent=name, generation=generation
        )

    def with_token(self, identity: Identity, subject: str, scopes: tuple[str, ...], **more: Any) -> Identity:
        token = self.mint.mint(
            subject, thumbprint=thumbprint(identity.certificate_pem), scopes=scopes, ttl_s=300, **more
        )
        return dataclasses.replace(identity, token=token)

    async def audit(self, record: AuditRecord) -> None:
        self.audited.append(record)

    async def serve(
        self,
        add: Callable[[grpc.aio.Server], None],
        identity: Callable[[], Identity] | None = None,
        *,
        tls: bool = True,
        **guard: Any,
    ) -> str:
        """Serve on a fresh unix socket; the guard's arguments may be replaced."""
        shown = self.part("factory")
        settings: dict[str, Any] = {"validator": RequestValidator(), "audit": self.audit, **guard}
        server = grpc.aio.server(
            interceptors=[GuardInterceptor(self.policy, TokenVerifier(self.mint.jwks), **settings)],
            options=SERVER_OPTIONS,
        )
        add(server)
        target = f"unix:{self.home}/{os.urandom(3).hex()}.sock"
        if tls:
            server.add_secure_port(target, server_credentials(identity or (lambda: shown)))
        else:
            server.add_insecure_port(target)
        await server.start()
        self.stack.push_async_callback(server.stop, 0)
        return target

    async def dial(
        self, target: str, identity: Identity | Callable[[], Identity], authority: str = FACTORY_AUTHORITY
    ) -> grpc.aio.Channel:
        current = identity if callable(identity) else lambda: identity
        return await self.stack.enter_async_context(open_channel(target, current, authority=authority))


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A directory whose socket paths stay under 108 bytes."""
    home = Path(tempfile.mkdtemp(prefix="hf", dir="/tmp"))
    yield home
    shutil.rmtree(home)


@pytest.fixture
async def world(short_home: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(short_home, stack)


class Factory(factory_service_pb2_grpc.FactoryServiceServicer):
    """Answers with whatever the test put in: an error is raised, anything else is returned."""

    def __init__(self, world: World, outcome: Any = None) -> None:
        self.world = world
        self.outcome = outcome

    async def GetAgent(self, request: Any, context: Any) -> Any:
        self.world.callers.append(current_caller())
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        if callable(self.outcome):
            await self.outcome(request, context)
        return factory_service_pb2.GetAgentResponse()

    SpawnAgent = StopAgent = GetAgent

    async def GetJwks(self, request: Any, context: Any) -> Any:
        self.world.callers.append(current_caller())
        return factory_service_pb2.GetJwksResponse()

    async def WatchAgents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(3):
            yield factory_service_pb2.WatchAgentsResponse()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        if callable(self.outcome):
            await self.outcome(request, context)


class Crews(crew_service_pb2_grpc.CrewServiceServicer):
    """Accepts manifests."""

    async def AssembleCrew(self, request: Any, context: Any) -> Any:
        return crew_service_pb2.AssembleCrewResponse()


class Agent(agent_service_pb2_grpc.AgentServiceServicer):
    """One agent of crew c1."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def Describe(self, request: Any, context: Any) -> Any:
        self.world.callers.append(current_caller())
        return agent_service_pb2.DescribeResponse()

    async def Deliver(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield agent_service_pb2.DeliverResponse()


def add_factory(world: World, outcome: Any = None) -> Callable[[grpc.aio.Server], None]:
    def add(server: grpc.aio.Server) -> None:
        factory_service_pb2_grpc.add_FactoryServiceServicer_to_server(Factory(world, outcome), server)
        crew_service_pb2_grpc.add_CrewServiceServicer_to_server(Crews(), server)
        health = HealthServicer()
        health.set("", True)
        add_health(health, server)

    return add


def add_agent(world: World) -> Callable[[grpc.aio.Server], None]:
    return lambda server: agent_service_pb2_grpc.add_AgentServiceServicer_to_server(Agent(world), server)


@pytest.fixture
def factory() -> Callable[..., Callable[[grpc.aio.Server], None]]:
    return add_factory


@pytest.fixture
def agent() -> Callable[[World], Callable[[grpc.aio.Server], None]]:
    return add_agent


@pytest.fixture
def trusted() -> Caller:
    return Caller(Principal.FACTORY, part_spiffe("factory"), name="factory")


async def raw(channel: grpc.aio.Channel, method: str, body: bytes, kind: type[Message]) -> Any:
    call = channel.unary_unary(method, response_deserializer=kind.FromString)
    return await call(body, timeout=CALL_MAX_S)


@pytest.fixture
def send_raw() -> Any:
    return raw
