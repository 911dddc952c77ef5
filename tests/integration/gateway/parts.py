"""A factory's registry and agents on the real contract with real certificates, and the gateway as a process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from embedded.ports import is_free
from factory_server.identity.ca import CertificateAuthority
from hyperfactory.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    factory_service_pb2,
    factory_service_pb2_grpc,
    types_pb2,
)
from wire.channels import SERVER_OPTIONS, open_channel, server_credentials
from wire.errors import Denied
from wire.identity import (
    FACTORY_AUTHORITY,
    Identity,
    agent_authority,
    operator_spiffe,
    part_spiffe,
)
from wire.status import abort

CREW = "c1"
PART_TTL_S = 3600.0
READY = types_pb2.AGENT_STATE_READY
REPOSITORY = Path(__file__).parents[3]


async def eventually(holds: Callable[[], Any], within_s: float = 15.0) -> Any:
    """Wait until the condition holds, and return what it gave."""
    async with asyncio.timeout(within_s):
        while not (found := holds()):
            await asyncio.sleep(0.005)
        return found


def free_port() -> int:
    """Below the kernel's ephemeral range: no outgoing connection takes it before its owner listens."""
    return next(port for port in random.sample(range(10_000, 18_000), 100) if is_free(port))


class AgentService(agent_service_pb2_grpc.AgentServiceServicer):
    """Says which agent it is, and echoes streams until the client ends them."""

    def __init__(self, agent: str, generation: int) -> None:
        self.agent = agent
        self.generation = generation
        self.callers: list[dict[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []
        self.streams = 0

    async def Describe(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.callers.append(context.auth_context())
        self.metadata.append(dict(context.invocation_metadata()))
        description = agent_service_pb2.AgentDescription(agent=self.agent, generation=self.generation)
        return agent_service_pb2.DescribeResponse(description=description)

    async def Deliver(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.streams += 1
        async for _ in requests:
            yield agent_service_pb2.DeliverResponse(attached=True)


class FactoryService(factory_service_pb2_grpc.FactoryServiceServicer):
    """The registry's list-and-watch and the gateway's certificates; no policy, no store."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority
        self.agents: dict[str, types_pb2.Agent] = {}
        self._watchers: set[asyncio.Queue[Any]] = set()
        self.issued: list[str] = []
        self.woken: list[str] = []

    def put(self, agent: types_pb2.Agent) -> None:
        """Store the agent and tell every watcher."""
        kept = types_pb2.Agent()
        kept.CopyFrom(agent)
        self.agents[agent.id] = kept
        self._tell(kept)

    def remove(self, agent: types_pb2.Agent) -> None:
        gone = self.agents.pop(agent.id)
        gone.state = types_pb2.AGENT_STATE_STOPPED
        self._tell(gone)

    def _tell(self, agent: types_pb2.Agent) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(factory_service_pb2.WatchAgentsResponse(agents=[agent]))

    async def GetFactoryInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return factory_service_pb2.GetFactoryInfoResponse(version="test")

    async def WatchAgents(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        queue: asyncio.Queue[Any] = asyncio.Queue(10_000)
        self._watchers.add(queue)
        try:
            yield factory_service_pb2.WatchAgentsResponse(agents=list(self.agents.values()), synced=True)
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def IssueGatewayCertificate(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = {agent_authority(agent.name, agent.crew) for agent in self.agents.values()}
        if request.dns_name in names:
            await abort(context, Denied("an agent has this name"))
        self.issued.append(request.dns_name)
        leaf = self._authority.issue(part_spiffe("gateway"), [request.dns_name], ttl_s=PART_TTL_S)
        expires = Timestamp()
        expires.FromDatetime(datetime.now(UTC) + timedelta(seconds=PART_TTL_S))
        return factory_service_pb2.IssueGatewayCertificateResponse(
            certificate_pem=leaf.certificate_pem, key_pem=leaf.key_pem, expire_time=expires
        )

    async def WakeAgent(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.woken.append(request.agent)
        return factory_service_pb2.WakeAgentResponse()


class GatewayProcess:
    """`python -m gateway` with its ports."""

    def __init__(self, home: Path, factory: str, *options: str) -> None:
        self.home = home
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics = f"127.0.0.1:{free_port()}"
        self._command = (
            *(sys.executable, "-m", "gateway", "--factory", factory, "--identity", str(home / "pki/gateway")),
            *("--listen", self.address, "--state", str(home / "gw"), "--metrics", self.metrics),
            *("--grace-s", "1", *options),
        )
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with (self.home / "gateway.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'gen'}"},
                stderr=log,
            )

    async def ready(self) -> None:
        assert self._process is not None
        try:
            async with asyncio.timeout(20):
                while (await self.get("/readyz"))[0] != 200:
                    assert self._process.returncode is None, self.log()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not ready: {self.log()} {await self.get('/routes')}") from None

    async def get(self, path: str) -> tuple[int, bytes]:
        host, _, port = self.metrics.partition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return 0, b""
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        try:
            answer = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def routes(self) -> dict[str, Any]:
        return dict(json.loads((await self.get("/routes"))[1]))

    async def figure(self, name: str) -> float:
        text = (await self.get("/metrics"))[1].decode()
        found = [line for line in text.splitlines() if line.startswith(f"hyperfactory_gateway_{name} ")]
        return float(found[0].split()[1])

    async def figure_is(self, name: str, value: float) -> None:
        async with asyncio.timeout(15):
            while await self.figure(name) != value:
                await asyncio.sleep(0.005)

    def log(self) -> str:
        logs = (self.home / "gateway.log", self.home / "gw" / "traefik.log")
        return "\n".join(log.read_text() for log in logs if log.exists())

    def open_files(self) -> int:
        assert self._process is not None
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()


class Stage:
    """Everything around the gateway under one directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.authority = CertificateAuthority.open(home / "ca")
        self.registry = FactoryService(self.authority)
        self.operator = self.authority.issue(operator_spiffe("eve"), [], ttl_s=PART_TTL_S)
        self.factory_address = f"127.0.0.1:{free_port()}"
        self.gateway = GatewayProcess(home, self.factory_address)
        self._servers: list[grpc.aio.Server] = []
        self._channels: list[grpc.aio.Channel] = []
        self._numbers = itertools.count()
        self.factory_server: grpc.aio.Server | None = None
        self.directory = home / "pki" / "gateway"
        self.directory.mkdir(parents=True)
        self.renew_identity()

    def renew_identity(self) -> None:
        """Give the gateway a new certificate."""
        identity = self.authority.issue(part_spiffe("gateway"), ["gateway.svc"], ttl_s=PART_TTL_S)
        for name, content in (
            ("cert.pem", identity.certificate_pem),
            ("key.pem", identity.key_pem),
            ("ca.pem", identity.ca_pem),
        ):
            scratch = self.directory / f".{name}"
            scratch.write_bytes(content)
            scratch.replace(self.directory / name)

    async def restart_gateway(self, *options: str) -> None:
        """Replace the gateway by one with other options."""
        await self.gateway.stop()
        self.gateway = GatewayProcess(self.home, self.factory_address, *options)
        await self.gateway.start()
        await self.gateway.ready()

    async def start_factory(self) -> None:
        identity = self.authority.issue(
            part_spiffe("factory"), [FACTORY_AUTHORITY, "localhost"], ttl_s=PART_TTL_S
        )
        server = grpc.aio.server(options=SERVER_OPTIONS)
        factory_service_pb2_grpc.add_FactoryServiceServicer_to_server(self.registry, server)
        server.add_secure_port(self.factory_address, server_credentials(lambda: identity))
        await server.start()
        self.factory_server = server

    async def stop_factory(self) -> None:
        assert self.factory_server is not None
        await self.factory_server.stop(0)
        self.factory_server = None

    async def serve_agent(
        self, agent: types_pb2.Agent, *, authority: CertificateAuthority | None = None
    ) -> tuple[AgentService, grpc.aio.Server]:
        """Start the agent's present instance on a socket of its own and write it into its endpoint."""
        path = self.home / f"a{next(self._numbers)}.sock"
        identity = (authority or self.authority).issue_agent(agent.crew, agent.name, agent.generation)
        service = AgentService(agent.id, agent.generation)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(service, server)
        server.add_secure_port(f"unix:{path}", server_credentials(lambda: identity))
        await server.start()
        self._servers.append(server)
        agent.endpoint.direct = f"unix://{path}"
        return service, server

    def agent(self, name: str, *, state: Any = READY, group: str = "", replicas: int = 1) -> types_pb2.Agent:
        """An agent that nothing serves yet."""
        return types_pb2.Agent(
            id=f"id-{name}",
            uid=f"uid-{name}",
            name=name,
            crew=CREW,
            state=state,
            generation=1,
            group=group or name,
            replicas=replicas,
        )

    async def ready_agent(self, name: str, **more: Any) -> tuple[types_pb2.Agent, AgentService]:
        agent = self.agent(name, **more)
        service, _ = await self.serve_agent(agent)
        self.registry.put(agent)
        return agent, service

    def channel(self, authority: str, identity: Identity | None = None, target: str = "") -> grpc.aio.Channel:
        shown = identity or self.operator
        channel = open_channel(target or self.gateway.address, lambda: shown, authority=authority)
        self._channels.append(channel)
        return channel

    def stub(self, name: str, identity: Identity | None = None) -> Any:
        """A client of the agent of this name through the gateway."""
        return agent_service_pb2_grpc.AgentServiceStub(self.channel(agent_authority(name, CREW), identity))

    async def close_channels(self) -> None:
        for channel in self._channels:
            await channel.close()
        self._channels.clear()

    async def close(self) -> None:
        await self.close_channels()
        await self.gateway.stop()
        for server in (*self._servers, *([self.factory_server] if self.factory_server else [])):
            await server.stop(0)


async def describe(stub: Any, within_s: float = 10.0) -> Any:
    """The description of whoever answers."""
    answer = await stub.Describe(agent_service_pb2.DescribeRequest(), timeout=within_s)
    return answer.description


async def describe_retrying(stub: Any, within_s: float = 15.0) -> Any:
    """As `describe`, by a client that calls again while it hears UNAVAILABLE, and only then."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await describe(stub)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def stream(stub: Any) -> AsyncIterator[Callable[[], Any]]:
    """An open stream; what it gives sends one item and returns the echo."""
    call = stub.Deliver()

    async def ping() -> Any:
        await call.write(agent_service_pb2.DeliverRequest())
        return await call.read()

    try:
        yield ping
    finally:
        call.cancel()
