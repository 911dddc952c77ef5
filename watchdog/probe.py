"""Ask one agent for its health over mTLS, on a connection that is kept for as long as the instance lives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
import grpc.aio
from cryptography.x509 import load_pem_x509_certificate
from grpc_health.v1.health_pb2 import HealthCheckResponse

from watchdog.judge import Observation, Outcome, Probe
from wire.channels import open_channel
from wire.identity import Identity

CHECK = "/grpc.health.v1.Health/Check"
EMPTY_REQUEST = b""
DETAILS_MAX_CHARS = 300
RECONNECT_MIN_MS = 100
RECONNECT_MAX_MS = 2000

# No answer came. Everything else, even a refusal, is a sign of life.
SILENCE = frozenset(
    {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
)
# A certificate that one side does not accept says nothing about the process behind it.
CERTIFICATE_TROUBLE = "CERTIFICATE"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an instance answers; `authority` is the name its certificate must carry."""

    target: str
    authority: str


class Prober:
    """One channel for each instance; closing is the owner's part."""

    def __init__(self, identity: Callable[[], Identity]) -> None:
        self._identity = identity
        self._lines: dict[str, _Line] = {}
        self._shown = b""
        self._expires = datetime.min.replace(tzinfo=UTC)

    def __len__(self) -> int:
        return len(self._lines)

    async def check(self, probe: Probe, address: Address) -> Observation:
        """Send the probe; never raises for what the agent does or leaves undone."""
        line = await self._line(probe, address)
        sent = time.monotonic()
        try:
            answer = await line.check(EMPTY_REQUEST, timeout=probe.deadline_s)
        except grpc.aio.AioRpcError as error:
            outcome, evidence = read_error(error)
        else:
            outcome, evidence = read_answer(answer)
        ended = time.monotonic()
        if outcome is Outcome.MISSED:
            evidence = f"{evidence} after {ended - sent:.1f} s"
        return Observation(probe.agent, probe.generation, sent, ended, outcome, evidence)

    def can_prove_itself(self, wall: datetime) -> bool:
        """Its own certificate has not expired; with one that has, everybody would seem dead."""
        certificate = self._identity().certificate_pem
        if certificate != self._shown:
            self._shown = certificate
            self._expires = load_pem_x509_certificate(certificate).not_valid_after_utc
        return wall < self._expires

    async def hang_up(self, agent: str) -> None:
        """Close the agent's channel; its probes in flight end as cancelled."""
        line = self._lines.pop(agent, None)
        if line is not None:
            await line.channel.close(None)

    async def close(self) -> None:
        for agent in list(self._lines):
            await self.hang_up(agent)

    async def _line(self, probe: Probe, address: Address) -> _Line:
        key = (probe.generation, address)
        line = self._lines.get(probe.agent)
        if line is not None and line.key == key and not probe.fresh:
            return line
        fresh = _Line(key, self._open(probe, address))
        self._lines[probe.agent] = fresh
        if line is not None:
            await line.channel.close(None)
        return fresh

    def _open(self, probe: Probe, address: Address) -> grpc.aio.Channel:
        # A channel that backs off for longer than a beat would miss beats of an agent that is back.
        backoff_ms = min(max(int(probe.deadline_s * 500), RECONNECT_MIN_MS), RECONNECT_MAX_MS)
        options = [("grpc.max_reconnect_backoff_ms", backoff_ms)]
        return open_channel(address.target, self._identity, authority=address.authority, options=options)


class _Line:
    """A channel and its one method; the request is always the same empty message."""

    __slots__ = ("channel", "check", "key")

    def __init__(self, key: tuple[int, Address], channel: grpc.aio.Channel) -> None:
        self.key = key
        self.channel = channel
        self.check: grpc.aio.UnaryUnaryMultiCallable[bytes, HealthCheckResponse] = channel.unary_unary(
            CHECK, request_serializer=bytes, response_deserializer=HealthCheckResponse.FromString
        )


def read_answer(answer: HealthCheckResponse) -> tuple[Outcome, str]:
    """SERVING, or the name of what it says instead."""
    if answer.status == HealthCheckResponse.SERVING:
        return Outcome.SERVING, ""
    known = answer.status in HealthCheckResponse.ServingStatus.values()
    name = HealthCheckResponse.ServingStatus.Name(answer.status) if known else str(answer.status)
    return Outcome.UNWELL, f"answered {name}"


def read_error(error: grpc.aio.AioRpcError) -> tuple[Outcome, str]:
    """Silence is a miss; a refusal is an answer."""
    code, details = error.code(), (error.details() or "")[:DETAILS_MAX_CHARS]
    evidence = f"{code.name}: {details}" if details else code.name
    if code in SILENCE and CERTIFICATE_TROUBLE not in details:
        return Outcome.MISSED, evidence
    return Outcome.UNWELL, f"answered {evidence}"
