"""The sandbox contract: what a driver must offer, and what it may be asked.

An error from a driver means *unknown*, never *dead*: only `exits()` and an instance's absence from a
successful `list()` say that an instance is gone. Every verb is idempotent by instance id, so that a repeat
after a crash or a lost answer is harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from factory_server.core.networks import Networks

SOCKET_SUFFIX: Final = ".sock"
HTTP_SUFFIX: Final = ".http"


def http_socket(service_target: str) -> str:
    """The path of the agent's HTTP socket, beside the service endpoint that `Driver.publish` returned.

    It is not there where the agent serves no HTTP.
    """
    return service_target.removeprefix("unix://").removesuffix(SOCKET_SUFFIX) + HTTP_SUFFIX


class Enforcement(StrEnum):
    """How far an isolation property holds, found by trying it, not by asking a version."""

    ENFORCED = "enforced"
    PARTIAL = "partial"
    ABSENT = "absent"


class Tier(StrEnum):
    """The strength of isolation as a whole; `FAKE` isolates nothing and serves tests and simulation."""

    FULL = "full"
    ROOTLESS = "rootless"
    LANDLOCK = "landlock"
    FAKE = "fake"


@dataclass(frozen=True, slots=True)
class Property:
    """One isolation property and the reason where it is not fully enforced."""

    name: str
    enforcement: Enforcement
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """What `probe()` found by trying."""

    name: str
    tier: Tier
    properties: tuple[Property, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource bounds of one instance; 0 means the driver's default."""

    memory_bytes: int = 512 * 1024 * 1024
    pids_max: int = 64
    cpu_millis: int = 1000
    workspace_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A wish for one instance. `labels` name its owner, for adoption and sweeping."""

    instance: str
    base: str = "python"
    limits: Limits = field(default_factory=Limits)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """An instance that exists.

    `control` is a gRPC target (`unix:///…`) that only the factory can open; the runtime answers there from
    the moment `create` returned.
    """

    instance: str
    driver: str
    control: str
    host_pid: int = 0
    container_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """An instance is gone. `code` is the exit status, `signal` the killing signal, 0 where unknown."""

    instance: str
    code: int = 0
    signal: int = 0
    oom: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What an instance uses now; 0 where the tier cannot tell."""

    memory_bytes: int = 0
    pids: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of an instance's output (stdout and stderr joined) that start at `offset`."""

    data: bytes
    offset: int


class Driver(Protocol):
    """Makes, wires and destroys sandboxes. Errors: `core.errors.Unavailable` (effect unknown), `NotFound`,
    `Exhausted` (no room), `Invalid`."""

    name: str
    cannot_freeze: str
    """Why it cannot freeze an instance in place; '' where it can."""

    @property
    def networks(self) -> Networks:
        """What crews have beside their sockets, where this driver has any."""

    async def start(self) -> None:
        """Adopt what runs and start what is missing (a zygote, a client); call once before any verb."""

    async def close(self) -> None:
        """Let go without destroying: instances live on and can be adopted."""

    async def probe(self) -> DriverInfo:
        """Report each isolation property as found by trying."""

    async def create(self, spec: SandboxSpec, *, deadline_s: float) -> Sandbox:
        """Return the running instance of this name, made now or found; its control socket answers."""

    async def list(self) -> Sequence[Sandbox]:
        """Every live instance of this factory, adopted ones included."""

    async def publish(self, instance: str) -> str:
        """Make the service endpoint reachable from the host side and return its gRPC target (`unix:///…`).

        Called after Assume, when the runtime has bound its sockets. The returned path lies in a directory
        that the agent cannot write, and is known to be a socket, not a link planted by the agent. The agent's
        HTTP socket, where it has one, lies beside it at `http_socket(target)`: only the factory can open it.
        """

    async def wire(self, instance: str, links: Mapping[str, str]) -> None:
        """Make exactly these sockets visible in the instance's peers directory: name → host path.

        Names are like `coder-1.sock`, `bus.sock`. Links that are not named are removed (new connects are
        refused from then on); a link whose target was re-created is renewed.
        """

    async def mount(self, instance: str, name: str, path: str) -> None:
        """Show the files of this host directory in the running instance, at `/skills/<name>`.

        They are read-only, without devices and setuid, from the moment that they are seen; another directory
        under the name is replaced. The same again is harmless.
        """

    async def unmount(self, instance: str, name: str) -> None:
        """Show nothing at `/skills/<name>` any more. Idempotent; with the instance all of them go."""

    async def mounts(self, instance: str) -> Sequence[str]:
        """The names that are shown at `/skills`."""

    async def freeze(self, instance: str) -> None:
        """Stop every process of the instance in place; it keeps its memory and its sockets."""

    async def thaw(self, instance: str) -> None:
        """Undo `freeze`."""

    async def destroy(self, instance: str) -> None:
        """Kill and wipe the instance; returns when no process, mount, socket or cgroup of it is left.

        Works from every state, also for an unknown or half-made instance, and can be repeated.
        """

    def exits(self) -> AsyncIterator[Exit]:
        """Instances that ended, as they end. Each consumer sees every exit once from its call on."""

    async def stats(self, instance: str) -> Usage:
        """What the instance uses now."""

    def logs(self, instance: str, *, tail_bytes: int, follow: bool) -> AsyncIterator[LogChunk]:
        """The instance's newest output, then what follows until it ends."""
