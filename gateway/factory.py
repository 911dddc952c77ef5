"""Talk to the factory: follow its registry for ever, ask for certificates, wake agents."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration

from gateway.registry import Registry, Route
from hyperfactory.v1 import factory_service_pb2 as pb
from hyperfactory.v1 import factory_service_pb2_grpc
from wire.channels import open_channel
from wire.errors import FactoryError
from wire.identity import FACTORY_AUTHORITY, Identity
from wire.status import from_rpc_error

BOOKMARK_EVERY_S: Final = 2
SILENCE_MAX_S: Final = 10.0
"""A watch that says nothing for so long is broken, whatever the connection looks like."""
WATCH_MAX_S: Final = 3600.0
CALL_WITHIN_S: Final = 2.0
WAKE_WITHIN_S: Final = 30.0
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of the factory's for us, and when (monotonic) to ask for the next."""

    certificate_pem: bytes
    key_pem: bytes
    renew_at_s: float


class Factory:
    """The gateway's side of FactoryService."""

    def __init__(self, address: str, identity: Callable[[], Identity]) -> None:
        self._channel = open_channel(address, identity, authority=FACTORY_AUTHORITY)
        self._stub: Any = factory_service_pb2_grpc.FactoryServiceStub(self._channel)
        self.heard_at_s: float | None = None
        self.reconnects = 0

    async def close(self) -> None:
        await self._channel.close(0)

    async def follow(self, registry: Registry) -> None:
        """Keep the registry as the factory's, until cancelled; a lost stream is taken up again."""
        backoff_s = BACKOFF_MIN_S
        while True:
            synced = False
            try:
                synced = await self._watch(registry)
            except (grpc.aio.AioRpcError, FactoryError, TimeoutError) as error:
                synced = registry.current
                log.warning("lost the registry", action="registry.lost", error=_says(error))
            registry.lost()
            self.reconnects += 1
            backoff_s = BACKOFF_MIN_S if synced else min(2 * backoff_s, BACKOFF_MAX_S)
            # Jitter: after a restart of the factory not every client shall come in the same moment.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))

    async def _watch(self, registry: Registry) -> bool:
        """Follow one stream to its end; tell whether it ever was complete."""
        request = pb.WatchAgentsRequest(bookmark_interval=Duration(seconds=BOOKMARK_EVERY_S))
        call = self._stub.WatchAgents(request, timeout=WATCH_MAX_S)
        try:
            registry.begin()
            while True:
                async with asyncio.timeout(SILENCE_MAX_S):
                    response = await call.read()
                if response is cast(Any, grpc.aio).EOF:
                    return registry.current
                self.heard_at_s = time.monotonic()
                registry.apply(response.agents)
                if response.synced:
                    registry.complete()
                if response.draining:
                    return registry.current
        finally:
            call.cancel()

    async def issue(self, name: str) -> Issued:
        """A certificate for a name that no single agent answers to; Denied for an agent's."""
        request = pb.IssueGatewayCertificateRequest(dns_name=name)
        try:
            response = await self._stub.IssueGatewayCertificate(request, timeout=CALL_WITHIN_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        left_s = (response.expire_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
        return Issued(response.certificate_pem, response.key_pem, time.monotonic() + left_s / 2)

    async def wake(self, route: Route) -> bool:
        """Ask for a hibernating agent and tell whether the factory agreed; the registry tells when it comes."""
        request = pb.WakeAgentRequest(request_id=str(uuid.uuid4()), agent=route.agent)
        try:
            await self._stub.WakeAgent(request, timeout=WAKE_WITHIN_S)
        except (grpc.aio.AioRpcError, FactoryError) as error:
            log.warning("cannot wake", action="agent.wake", agent=route.agent, error=_says(error))
            return False
        return True


def _says(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        native: FactoryError = from_rpc_error(error)
        return f"{error.code().name}: {native.message}"
    return str(error) or type(error).__name__
