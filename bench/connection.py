"""Channels to the factory and to agents, with plain grpcio: nothing of ours runs in the client but the stubs."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

from hyperfactory.v1 import (
    agent_service_pb2_grpc,
    crew_service_pb2_grpc,
    factory_service_pb2_grpc,
)
from wire.channels import CHANNEL_OPTIONS
from wire.identity import IdentityFile

Metadata = Sequence[tuple[str, str]]


class Caller:
    """The operator: opens channels, and says who calls."""

    def __init__(self, identity: IdentityFile) -> None:
        self._identity = identity

    @property
    def metadata(self) -> Metadata:
        """The operator's token as it is now."""
        return [("authorization", f"Bearer {self._identity.current().token}")]

    def open(self, target: str, authority: str) -> grpc.aio.Channel:
        """A channel of its own connection, with mTLS."""
        who = self._identity.current()
        credentials = grpc.ssl_channel_credentials(who.ca_pem, who.key_pem, who.certificate_pem)
        names = (("grpc.ssl_target_name_override", authority), ("grpc.default_authority", authority))
        return grpc.aio.secure_channel(target, credentials, options=(*CHANNEL_OPTIONS, *names))


class FactoryStubs:
    """The factory's services over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.crews: crew_service_pb2_grpc.CrewServiceAsyncStub = crew_service_pb2_grpc.CrewServiceStub(
            channel
        )
        self.factory: factory_service_pb2_grpc.FactoryServiceAsyncStub = (
            factory_service_pb2_grpc.FactoryServiceStub(channel)
        )


def agent_stub(channel: grpc.aio.Channel) -> agent_service_pb2_grpc.AgentServiceAsyncStub:
    """An agent's service."""
    return agent_service_pb2_grpc.AgentServiceStub(channel)
