"""Put the gateway's parts together and run them until asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from gateway import memory, web
from gateway.activator import Activator
from gateway.factory import Factory
from gateway.figures import pages
from gateway.pipe import Traffic
from gateway.ports import Ports, address_of, listen_on
from gateway.publisher import Addresses, Publisher
from gateway.registry import Registry
from gateway.relay import Limits, Relay
from gateway.traefik import Traefik
from wire.errors import Unavailable
from wire.identity import Identity, IdentityFile

GRACE_S: Final = 5.0
HELLO_S: Final = 10.0
IDENTITY_EVERY_S: Final = 0.2
HUNG_AFTER_S: Final = 30.0
"""A Traefik that has not answered for so long is killed; long enough for a starved machine."""
WATCH_EVERY_S: Final = 5.0
DOCUMENT_PATH: Final = "/document"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    factory: str
    identity: Path
    listen: str
    state: Path
    metrics: str
    factory_http: str = ""
    grace_s: float = GRACE_S
    hello_s: float = HELLO_S
    limits: Limits = field(default_factory=Limits)


class Gateway:
    """The parts, once there is an identity."""

    def __init__(self, options: Options, identity: Callable[[], Identity]) -> None:
        ports = Ports(options.state / "ports.json")
        self._sockets = {name: ports.listen(name) for name in ("document", "relay", "members")}
        self.registry = Registry()
        self._memory = options.state / "routes.json"
        self.registry.restore(memory.load(self._memory))
        self.factory = Factory(options.factory, identity)
        traffic = Traffic()
        self.activator = Activator(
            identity=identity,
            issue=self.factory.issue,
            reachable=lambda name: self.relay.reachable(name),
            state=options.state,
            traffic=traffic,
        )
        addresses = Addresses(
            public=options.listen,
            factory=options.factory,
            relay=address_of(self._sockets["relay"]),
            members=address_of(self._sockets["members"]),
            absent=self.activator.absent_at,
            factory_http=options.factory_http,
        )
        self.publisher = Publisher(
            self.registry,
            identity=identity,
            issue=self.factory.issue,
            addresses=addresses,
            state=options.state,
        )
        self.traefik = Traefik(
            public=options.listen,
            document=f"http://{address_of(self._sockets['document'])}{DOCUMENT_PATH}",
            state=options.state,
            ports=ports,
            grace_s=options.grace_s,
            hello_s=options.hello_s,
        )
        self.relay = Relay(
            self.registry,
            answerer=self.activator,
            groups_at=lambda: self.traefik.groups_at,
            group_routed=self.publisher.routed,
            wake=self.factory.wake,
            limits=options.limits,
            traffic=traffic,
        )
        self._applied_once = False

    @property
    def ready(self) -> bool:
        """Registry read and the first document applied. A factory that is gone later takes nothing back."""
        self._applied_once = self._applied_once or bool(self.publisher.applied)
        return self.registry.synced.is_set() and self._applied_once

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`; Traefik goes first, so that what it carries can finish through us."""
        await self.activator.start()
        try:
            async with self._listening(), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self.relay.run(), name="relay"),
                    group.create_task(self.factory.follow(self.registry), name="follow the registry"),
                    group.create_task(memory.keep(self.registry, self._memory), name="remember"),
                    group.create_task(self.publisher.run(), name="publish"),
                    group.create_task(self.publisher.confirm(), name="confirm"),
                    group.create_task(self.traefik.run(), name="traefik"),
                    group.create_task(self._unhang(), name="unhang"),
                ]
                try:
                    await stop.wait()
                finally:
                    await self.traefik.stop()
                for task in tasks:
                    task.cancel()
        finally:
            await self.activator.stop()
            await self.factory.close()

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        servers = [
            await web.serve({DOCUMENT_PATH: self.publisher.page}, self._sockets["document"]),
            await loop.create_server(lambda: self.relay.accept(parking=True), sock=self._sockets["relay"]),
            await loop.create_server(lambda: self.relay.accept(parking=False), sock=self._sockets["members"]),
        ]
        try:
            yield
        finally:
            for server in servers:
                server.close()

    async def _unhang(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if (
                time.monotonic() - self.publisher.answered_at_s > HUNG_AFTER_S
                and self.registry.synced.is_set()
            ):
                log.error("traefik does not answer", action="traefik.hung", pid=self.traefik.pid)
                self.publisher.answered_at_s = time.monotonic()
                self.traefik.kill()


async def serve(options: Options, stop: asyncio.Event) -> None:
    """Run the gateway of this state directory until `stop`."""
    options.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    gateway: Gateway | None = None
    with _only_one(options.state):
        operators = await web.serve(pages(lambda: gateway), listen_on(options.metrics))
        try:
            identity = await _identity(options.identity, stop)
            if identity is not None:
                gateway = Gateway(options, identity.current)
                await gateway.run(stop)
        finally:
            operators.close()


async def _identity(directory: Path, stop: asyncio.Event) -> IdentityFile | None:
    """The identity, as soon as the factory has written one; None when asked to stop before."""
    while not stop.is_set():
        try:
            return IdentityFile(directory)
        except Unavailable:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDENTITY_EVERY_S):
                    await stop.wait()
    return None


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
