"""Connect to a factory as client.json says, and find crews and agents by id or name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from factory_cli.failures import CommandFailedError, Exit, NotConnectedError, UsageFailedError
from hyperfactory.v1 import (
    crew_service_pb2,
    crew_service_pb2_grpc,
    factory_service_pb2,
    factory_service_pb2_grpc,
    profile_service_pb2_grpc,
    skill_service_pb2_grpc,
    tool_service_pb2_grpc,
    types_pb2,
)
from wire.channels import open_channel
from wire.identity import CA_FILE, CERTIFICATE_FILE, KEY_FILE, TOKEN_FILE, Identity, load_identity

CALL_WITHIN_S = 30.0
ASSEMBLE_WITHIN_S = 120.0
DISBAND_WITHIN_S = 60.0
_KEYS = ("endpoint", "authority", "ca", "cert", "key", "token")


@dataclass(frozen=True, slots=True)
class ClientFile:
    """Where the server is and who we are: the contents of client.json."""

    endpoint: str
    authority: str
    ca: Path
    cert: Path
    key: Path
    token: Path
    home: Path | None = None
    """Where that stack keeps everything, if it is on this machine."""

    def identity(self) -> Identity:
        """Read the credentials as they are now; the factory renews them at half-life."""
        paths = (self.cert, self.key, self.ca, self.token)
        names = (CERTIFICATE_FILE, KEY_FILE, CA_FILE, TOKEN_FILE)
        if paths == tuple(self.cert.parent / name for name in names):
            return load_identity(self.cert.parent)  # all of one version, also while they are replaced
        try:
            return Identity(
                certificate_pem=self.cert.read_bytes(),
                key_pem=self.key.read_bytes(),
                ca_pem=self.ca.read_bytes(),
                token=self.token.read_text().strip(),
            )
        except OSError as error:
            raise NotConnectedError(f"cannot connect: '{error.filename}': {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Client:
    """The services of one factory."""

    channel: grpc.aio.Channel
    factory: factory_service_pb2_grpc.FactoryServiceAsyncStub
    crews: crew_service_pb2_grpc.CrewServiceAsyncStub
    profiles: profile_service_pb2_grpc.ProfileServiceAsyncStub
    skills: skill_service_pb2_grpc.SkillServiceAsyncStub
    tools: tool_service_pb2_grpc.ToolServiceAsyncStub

    async def crew_id(self, reference: str) -> str:
        """Return a crew's id from its id or from the name of a live crew."""
        request = crew_service_pb2.ListCrewsRequest(filter=f"name={reference}", page_size=10)
        found = [crew.id for crew in (await self.crews.ListCrews(request, timeout=CALL_WITHIN_S)).crews]
        if len(found) > 1 and reference not in found:
            raise UsageFailedError(
                f"several crews are called '{reference}': name one by id: {', '.join(found)}"
            )
        return found[0] if len(found) == 1 else reference

    async def agent_id(self, reference: str) -> str:
        """Return an agent's id from its id or from `<crew>/<name>`."""
        crew, slash, name = reference.rpartition("/")
        if not slash:
            return reference
        return (await self.member(await self.crew_id(crew), name)).id

    async def member(self, crew: str, name: str) -> types_pb2.Agent:
        """Return the member of a crew that has this name."""
        request = crew_service_pb2.GetCrewRequest(crew=crew)
        answer = await self.crews.GetCrew(request, timeout=CALL_WITHIN_S)
        for agent in answer.crew.agents:
            if name in (agent.name, agent.id):
                return agent
        raise CommandFailedError(f"crew '{crew}' has no member '{name}'", Exit.NOT_FOUND)

    async def agent(self, agent_id: str) -> types_pb2.Agent:
        """Return an agent as it is now."""
        request = factory_service_pb2.GetAgentRequest(agent=agent_id)
        return (await self.factory.GetAgent(request, timeout=CALL_WITHIN_S)).agent


def read_client_file(file: Path) -> ClientFile:
    """Read client.json; relative paths in it are relative to it."""
    try:
        body = json.loads(file.read_text())
    except FileNotFoundError:
        raise NotConnectedError(
            f"cannot connect: there is no '{file}'; start the stack with 'hyperfactory up', "
            "or name its client.json with --client"
        ) from None
    except (OSError, ValueError) as error:
        raise NotConnectedError(f"cannot connect: cannot read '{file}': {error}") from error
    missing = [key for key in _KEYS if not isinstance(body, dict) or not isinstance(body.get(key), str)]
    if missing:
        raise NotConnectedError(f"cannot connect: '{file}' does not say {', '.join(missing)}")
    paths = {key: file.parent / body[key] for key in ("ca", "cert", "key", "token")}
    home = file.parent / body["home"] if isinstance(body.get("home"), str) else None
    return ClientFile(endpoint=body["endpoint"], authority=body["authority"], home=home, **paths)


@asynccontextmanager
async def connect(file: Path, *, authority: str = "") -> AsyncIterator[Client]:
    """Open a channel to the factory, or with `authority` to an agent behind the same gateway."""
    found = read_client_file(file)
    found.identity()
    async with open_channel(
        found.endpoint, found.identity, authority=authority or found.authority
    ) as channel:
        yield Client(
            channel=channel,
            factory=factory_service_pb2_grpc.FactoryServiceStub(channel),
            crews=crew_service_pb2_grpc.CrewServiceStub(channel),
            profiles=profile_service_pb2_grpc.ProfileServiceStub(channel),
            skills=skill_service_pb2_grpc.SkillServiceStub(channel),
            tools=tool_service_pb2_grpc.ToolServiceStub(channel),
        )
