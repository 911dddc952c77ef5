"""One instance: serves its control socket from the start, after `Assume` its service endpoint and HTTP socket."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc.aio

from agent_runtime import translate
from agent_runtime.assumed import AssumedAgent
from agent_runtime.egress import Forwarder
from agent_runtime.http.server import HttpServer
from agent_runtime.limits import MESSAGE_MAX_BYTES
from agent_runtime.making import make
from agent_runtime.paths import Paths
from agent_runtime.servicer import AgentServicer
from agent_runtime.signals import Inbox
from agent_runtime.validation import violations
from agent_runtime.web import routes
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import agent_service_pb2_grpc as rpc
from wire.channels import SERVER_OPTIONS, server_credentials
from wire.errors import Refused, Unavailable
from wire.health import OVERALL, HealthServicer, add_health
from wire.identity import part_spiffe
from wire.interceptors import GuardInterceptor
from wire.policy import Caller, PolicyTable, Principal
from wire.tokens import TokenVerifier

log = logging.getLogger(__name__)

FACTORY: Final = Caller(Principal.FACTORY, part_spiffe("factory"), "factory", peer="control socket")
SERVICE: Final = pb.DESCRIPTOR.services_by_name["AgentService"]
STOP_GRACE_S: Final = 0.2
# Other users' processes connect: mates run under other uids, the directory decides who sees the socket.
SERVICE_MODE: Final = 0o666


class Runtime:
    """An instance without identity until `assume`; several may live in one process."""

    def __init__(self, paths: Paths, *, own_process: bool = False) -> None:
        self.paths = paths
        self.inbox = Inbox()
        self._own_process = own_process
        self._health = HealthServicer()
        self._policy = PolicyTable.from_services(SERVICE)
        self._control: grpc.aio.Server | None = None
        self._service: grpc.aio.Server | None = None
        self._http: HttpServer | None = None
        self._agent: AssumedAgent | None = None
        self._forwarder: Forwarder | None = None
        self._assuming = asyncio.Lock()
        self._stopping = False

    async def start(self) -> None:
        """Serve the control socket."""
        guard = GuardInterceptor(self._policy, None, validator=violations, trusted_caller=FACTORY)
        self._control = self._server(guard, MESSAGE_MAX_BYTES)
        _bind(self._control, self.paths.control, None)
        await self._control.start()

    async def stop(self) -> None:
        """End everything; calls in flight get a moment."""
        self._stopping = True
        self._health.set_all(False)
        async with asyncio.TaskGroup() as group:
            for server in (self._control, self._service):
                if server is not None:
                    group.create_task(server.stop(STOP_GRACE_S))
            if self._http is not None:
                group.create_task(self._http.stop())
        if self._agent is not None:
            await self._agent.close()
        if self._forwarder is not None:
            await self._forwarder.close()
        for socket in (self.paths.control, self.paths.service, self.paths.http):
            with suppress(FileNotFoundError):
                socket.unlink()

    def maybe_agent(self) -> AssumedAgent | None:
        return self._agent

    def agent(self) -> AssumedAgent:
        """The agent; `Refused` before `Assume`."""
        if self._agent is None:
            raise Refused("the instance has no identity yet", metadata={"state": "UNASSUMED"})
        return self._agent

    async def assume(self, request: pb.AssumeRequest) -> AssumedAgent:
        """Become this agent, once. The same again is harmless."""
        async with self._assuming:
            if self._agent is not None:
                return self._same(self._agent, request)
            if self._stopping:
                raise Unavailable("the instance is going away", reason="DRAINING")
            with _applied(request.spec.env if self._own_process else {}):
                self._agent = await self._become(request)
            self._health.set(OVERALL, True)
            self._health.set(SERVICE.full_name, True)
            self._report_of(self._agent)
        facts = self._agent.facts
        log.info(
            "serving",
            extra={
                "agent": facts.agent,
                "crew": facts.crew,
                "generation": facts.generation,
                "profile": facts.profile,
            },
        )
        return self._agent

    async def _become(self, request: pb.AssumeRequest) -> AssumedAgent:
        """The agent, started and served; nothing of it stays when a step fails."""
        proxy = await self._lead_out() if request.egress else ""
        agent = await make(request, self.paths, self.inbox, proxy)
        try:
            await agent.start(translate.blob(request.state) if request.HasField("state") else None)
            http = HttpServer(routes(agent))
            await http.start(self.paths.http)
        except BaseException:
            await agent.close()
            raise
        try:
            self._service = await self._serve(agent)
        except BaseException:
            await http.stop()
            await agent.close()
            raise
        self._http = http
        return agent

    def _report_of(self, agent: AssumedAgent) -> None:
        """Say on the factory's session what the agent offers, now and whenever it is another."""
        self.inbox.report_by(lambda: translate.report(agent))
        agent.parts.context.capabilities.tell(self.inbox.report_due)

    async def _lead_out(self) -> str:
        """The URL of the proxy for this agent's programs; kept when `Assume` fails, for the next try."""
        if not self._own_process:
            return ""  # its loopback is others', too
        if self._forwarder is None:
            self._forwarder = Forwarder(self.paths.peers)
            await self._forwarder.start()
        return self._forwarder.url

    async def drain(self, grace_s: float) -> int:
        self._health.set_all(False)
        return await self.agent().drain(grace_s)

    @staticmethod
    def _same(agent: AssumedAgent, request: pb.AssumeRequest) -> AssumedAgent:
        facts = agent.facts
        if (facts.agent, facts.generation) != (request.agent, request.generation):
            raise Refused(
                f"the instance is agent '{facts.agent}' of generation {facts.generation} already",
                metadata={"state": "ASSUMED"},
            )
        return agent

    async def _serve(self, agent: AssumedAgent) -> grpc.aio.Server:
        identity = agent.parts.identity
        guard = GuardInterceptor(
            self._policy,
            TokenVerifier(identity.jwks),
            validator=violations,
            generation_check=agent.check_generation,
            own=agent.own,
        )
        server = self._server(guard)
        _bind(server, self.paths.service, server_credentials(identity.current))
        self.paths.service.chmod(SERVICE_MODE)
        await server.start()
        return server

    def _server(self, guard: GuardInterceptor, message_max_bytes: int = 0) -> grpc.aio.Server:
        options: dict[str, Any] = dict(SERVER_OPTIONS)
        if message_max_bytes:
            options["grpc.max_receive_message_length"] = message_max_bytes
            options["grpc.max_send_message_length"] = message_max_bytes
        server = grpc.aio.server(interceptors=[guard], options=list(options.items()))
        rpc.add_AgentServiceServicer_to_server(AgentServicer(self), server)
        add_health(self._health, server)
        return server


@contextmanager
def _applied(env: Mapping[str, str]) -> Iterator[None]:
    """Set the environment for the profile's code; take it back if the instance does not become the agent."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    except BaseException:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        raise


def _bind(server: grpc.aio.Server, path: Path, credentials: grpc.ServerCredentials | None) -> None:
    """Listen on a socket, in the place of one that a former process may have left."""
    with suppress(FileNotFoundError):
        path.unlink()
    address = f"unix:{path}"
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
