"""A running factory for a whole test session, and a client that connects as any orchestrator would."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from hyperfactory.v1 import (
    crew_service_pb2,
    crew_service_pb2_grpc,
    factory_service_pb2_grpc,
    profile_service_pb2_grpc,
)

ROOT = Path(__file__).parents[2]
START_WITHIN_S = 120.0
STOP_WITHIN_S = 60.0
CALL_WITHIN_S = 60.0
PROXY_WITHIN_S = 30.0
MANIFEST = {
    "name": "trio",
    "members": [
        {"name": "planner", "profile": "planner"},
        {"name": "coder", "profile": "coder", "replicas": 2, "labels": {"team": "blue"}},
    ],
    "context": {"goal": {"answer": 42}},
}


@dataclass
class Running:
    """A stack and where its things are."""

    home: Path
    process: subprocess.Popen[bytes]
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def client(self) -> dict[str, str]:
        """What client.json says."""
        return json.loads((self.home / "client.json").read_text())

    @property
    def ports(self) -> dict[str, int]:
        """The stack's ports by name."""
        return json.loads((self.home / "ports.json").read_text())


def _start(home: Path, options: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """`python -m embedded`, once it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "embedded", "--home", str(home), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = b""
    for line in process.stdout:
        said += line
        if line.startswith(b"ready at"):
            return process
    raise AssertionError(f"the stack ended before it was ready: {said.decode()}")


def start_again(running: Running) -> None:
    """Start a successor of a stack whose supervisor was killed."""
    running.process.communicate()
    running.process = _start(running.home, running.options, running.environment)


@contextmanager
def running_stack(prefix: str = "hfa", *options: str, **environment: str) -> Iterator[Running]:
    """A stack in a short home of its own, stopped cleanly at the end, with options of `python -m embedded`."""
    home = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    running = Running(home, _start(home, options, environment), options, environment)
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        rest, _ = running.process.communicate(timeout=STOP_WITHIN_S)
        if running.process.returncode == 0:
            shutil.rmtree(home, ignore_errors=True)
    assert running.process.returncode == 0, rest.decode()


def request_id() -> str:
    """A fresh one."""
    return str(uuid.uuid4())


def manifest(**changes: Any) -> crew_service_pb2.CrewManifest:
    """MANIFEST with changes, as the contract's message."""
    return ParseDict(MANIFEST | changes, crew_service_pb2.CrewManifest())


class Client:
    """Stubs over one channel through the gateway, with the operator's credentials."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self.channel = channel
        self.metadata = [("authorization", f"Bearer {token}")]
        self.crews = crew_service_pb2_grpc.CrewServiceStub(channel)
        self.factory = factory_service_pb2_grpc.FactoryServiceStub(channel)
        self.profiles = profile_service_pb2_grpc.ProfileServiceStub(channel)

    async def assemble(self, **changes: Any) -> Any:
        """A READY crew."""
        request = crew_service_pb2.AssembleCrewRequest(request_id=request_id(), manifest=manifest(**changes))
        response = await self.crews.AssembleCrew(request, timeout=CALL_WITHIN_S, metadata=self.metadata)
        return response.crew

    async def disband(self, crew: str) -> Any:
        """The crew, gone."""
        request = crew_service_pb2.DisbandCrewRequest(request_id=request_id(), crew=crew)
        response = await self.crews.DisbandCrew(request, timeout=CALL_WITHIN_S, metadata=self.metadata)
        return response.crew

    async def get(self, crew: str) -> Any:
        """The crew as it is."""
        request = crew_service_pb2.GetCrewRequest(crew=crew)
        return (await self.crews.GetCrew(request, timeout=CALL_WITHIN_S, metadata=self.metadata)).crew


def credentials_of(told: dict[str, str]) -> grpc.ChannelCredentials:
    """mTLS as client.json says."""
    ca, key, cert = (Path(told[name]).read_bytes() for name in ("ca", "key", "cert"))
    return grpc.ssl_channel_credentials(ca, key, cert)


def token_of(told: dict[str, str]) -> str:
    """The operator's token as it is now."""
    return Path(told["token"]).read_text().strip()


@asynccontextmanager
async def connected(running: Running, *, token: str | None = None) -> AsyncIterator[Client]:
    """Connect with plain grpcio, as client.json says; nothing of ours is used but the stubs."""
    told = running.client
    credentials = credentials_of(told)
    told_token = token_of(told) if token is None else token
    options = [
        ("grpc.ssl_target_name_override", told["authority"]),
        ("grpc.default_authority", told["authority"]),
    ]
    async with grpc.aio.secure_channel(told["endpoint"], credentials, options) as channel:
        yield Client(channel, told_token)


@contextmanager
def running_proxy(running: Running) -> Iterator[str]:
    """`hyperfactory proxy` for many tests, and its URL."""
    command = (sys.executable, "-m", "factory_cli", "--client", str(running.home / "client.json"), "--json")
    process = subprocess.Popen(
        [*command, "proxy", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PROXY_WITHIN_S)


@asynccontextmanager
async def proxied(running: Running) -> AsyncIterator[str]:
    """`hyperfactory proxy`, and its URL."""
    command = (sys.executable, "-m", "factory_cli", "--client", str(running.home / "client.json"), "--json")
    process = await asyncio.create_subprocess_exec(
        *command,
        "proxy",
        "--port",
        "0",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PROXY_WITHIN_S):
            said = await process.stdout.readline()
        yield json.loads(said)["url"]
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()
