"""A small public-key authority, agents in processes of their own, and a registry on the real contract."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.duration_pb2 import Duration

from hyperfactory.v1.factory_service_pb2 import (
    AgentHealth,
    ReportHealthRequest,
    ReportHealthResponse,
    WatchAgentsResponse,
)
from hyperfactory.v1.factory_service_pb2_grpc import (
    FactoryServiceServicer,
    add_FactoryServiceServicer_to_server,
)
from hyperfactory.v1.types_pb2 import Agent, AgentState, Endpoint
from wire.channels import SERVER_OPTIONS, server_credentials
from wire.identity import (
    FACTORY_AUTHORITY,
    IdentityFile,
    agent_authority,
    agent_spiffe,
    part_spiffe,
)

ROOT = Path(__file__).parents[3]
CREW = "c1"
WAIT_MAX_S = 20.0


@dataclass
class Authority:
    """Issues identity directories as the factory would."""

    home: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.certificate = self._sign("ca", [], self.key, is_ca=True)

    def issue(self, who: str, spiffe: str, *dns: str, lasts_s: float = 3600) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe), *map(x509.DNSName, dns)]
        directory = self.home / who
        directory.mkdir()
        pem = serialization.Encoding.PEM
        (directory / "cert.pem").write_bytes(self._sign(who, names, key, lasts_s=lasts_s).public_bytes(pem))
        (directory / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (directory / "ca.pem").write_bytes(self.certificate.public_bytes(pem))
        return directory

    def agent(self, name: str) -> Path:
        return self.issue(name, agent_spiffe(CREW, name), agent_authority(name, CREW))

    def _sign(
        self,
        who: str,
        names: list[x509.GeneralName],
        key: ec.EllipticCurvePrivateKey,
        *,
        is_ca: bool = False,
        lasts_s: float = 3600,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, who)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(seconds=lasts_s))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


class Registry(FactoryServiceServicer):
    """The two methods the watchdog uses, as the contract says; keeps what was reported."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.reports: list[AgentHealth] = []
        self.refuse = False
        self._news: list[asyncio.Queue[Agent]] = []

    def put(self, agent: Agent) -> None:
        self.agents[agent.id] = agent
        for queue in self._news:
            queue.put_nowait(agent)

    async def WatchAgents(self, request: Any, context: Any) -> AsyncIterator[WatchAgentsResponse]:  # noqa: N802
        queue: asyncio.Queue[Agent] = asyncio.Queue(maxsize=1000)
        self._news.append(queue)
        try:
            yield WatchAgentsResponse(agents=self.agents.values())
            yield WatchAgentsResponse(synced=True)
            while True:
                yield WatchAgentsResponse(agents=[await queue.get()])
        finally:
            self._news.remove(queue)

    async def ReportHealth(self, request: ReportHealthRequest, context: Any) -> ReportHealthResponse:  # noqa: N802
        if self.refuse:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.reports += request.reports
        return ReportHealthResponse()

    def about(self, agent: str) -> list[AgentHealth]:
        return [report for report in self.reports if report.agent == agent]


@dataclass
class Stage:
    """Everything one test needs, and what it must clean up."""

    authority: Authority
    home: Path
    registry: Registry = field(default_factory=Registry)
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def factory_target(self) -> str:
        return f"unix:{self.home}/f.sock"

    def watchdog_identity(self, lasts_s: float = 3600) -> Path:
        return self.authority.issue("watchdog", part_spiffe("watchdog"), lasts_s=lasts_s)

    @asynccontextmanager
    async def factory(self) -> AsyncIterator[None]:
        """The registry on a socket, for as long as the block lasts."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        add_FactoryServiceServicer_to_server(self.registry, server)
        directory = self.home / "pki" / "factory"
        if not directory.exists():
            self.authority.issue("factory", part_spiffe("factory"), FACTORY_AUTHORITY)
        server.add_secure_port(self.factory_target, server_credentials(IdentityFile(directory).current))
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    async def start_agent(
        self, name: str, *, delay_s: float = 0.0, serving: bool = True, interval_s: float = 0.3
    ) -> None:
        identity = self.authority.agent(name)
        socket = self.home / f"{name}.sock"
        self.processes[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.watchdog.agent"),
            *(str(socket), str(identity), str(delay_s), "serving" if serving else "unwell"),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
            stdout=asyncio.subprocess.PIPE,
        )
        output = self.processes[name].stdout
        assert output is not None
        async with asyncio.timeout(WAIT_MAX_S):
            assert await output.readline() == b"ready\n"
        self.registry.put(self.agent(name, interval_s=interval_s))

    async def start_watchdog(self, name: str, interval_s: float) -> None:
        """The shipped program in a process of its own."""
        self.processes[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "watchdog", "--factory", self.factory_target),
            *("--identity", str(self.watchdog_identity()), "--interval", str(interval_s)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
        )

    def agent(self, name: str, *, generation: int = 1, interval_s: float = 0.3) -> Agent:
        return Agent(
            id=name,
            name=name,
            crew=CREW,
            state=AgentState.AGENT_STATE_READY,
            generation=generation,
            endpoint=Endpoint(authority=agent_authority(name, CREW), direct=f"unix:{self.home}/{name}.sock"),
            health_interval=Duration(nanos=int(interval_s * 1e9)),
        )

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    async def close(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("wd")


@pytest.fixture
async def stage(home: Path) -> AsyncIterator[Stage]:
    pki = home / "pki"
    pki.mkdir()
    made = Stage(Authority(pki), home)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Any]:
    """Wait for a condition, with a deadline."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_MAX_S):
            while not condition():
                await asyncio.sleep(0.01)

    return wait
