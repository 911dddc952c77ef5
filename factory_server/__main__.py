"""Compose a factory process: adapters, use cases, servicers; run it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import uvloop

from factory_server import config
from factory_server.api.a2a.servicer import A2AServicer, A2AUses
from factory_server.api.crews import CrewServicer, CrewUses
from factory_server.api.encode import Encoder
from factory_server.api.factory import FactoryFacts, FactoryServicer
from factory_server.api.http import a2a, chat, mcp
from factory_server.api.http.app import HttpFace
from factory_server.api.http.build import build_face
from factory_server.api.http.listener import Listener
from factory_server.api.http.mcp import McpUses
from factory_server.api.http.relay import Relay
from factory_server.api.profiles import ProfileServicer
from factory_server.api.registry import RegistryUses
from factory_server.api.server import Servicers, build_guard, build_server
from factory_server.api.skills import SkillServicer
from factory_server.api.tools import ToolServicer, ToolUses
from factory_server.bus import RedisBus, RedisVectorSets
from factory_server.choosing import driver_of, kept_driver, terminate
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import FactoryError
from factory_server.core.ports import Egress
from factory_server.core.sandbox import Driver
from factory_server.drivers.line import GrpcLine
from factory_server.drivers.namespaces.launcher import places
from factory_server.egress import EgressProxy
from factory_server.identity.agents import AgentIdentities
from factory_server.identity.ca import PART_TTL_S, CertificateAuthority
from factory_server.identity.directory import IdentityDirectory
from factory_server.identity.mint import TokenMint
from factory_server.identity.secretfiles import SecretFiles
from factory_server.identity.skills import SkillSigner
from factory_server.services import profiles
from factory_server.services.audit import AuditLog
from factory_server.services.broadcast import Broadcasts
from factory_server.services.call_rates import CallRates
from factory_server.services.chat import Chats
from factory_server.services.doorbells import Doorbells
from factory_server.services.parts import Parts
from factory_server.services.reach import Reach
from factory_server.services.reconciler import Reconciler
from factory_server.services.registry import RegistryFeed
from factory_server.services.renewal import Renewal
from factory_server.services.sessions import Sessions
from factory_server.services.tasks import Tasks
from factory_server.services.tool_calls import ToolCalls
from factory_server.services.tools import ToolRegistry
from factory_server.services.vector_indexing import VectorIndexing
from factory_server.services.vectors import VectorSpaces
from factory_server.services.watch import Feed
from factory_server.store import PostgresStore
from factory_server.store.pool import Changed
from factory_server.store.shelf import Shelf
from factory_server.upstream import Upstreams
from wire.channels import server_credentials
from wire.health import HealthServicer
from wire.identity import Identity, part_spiffe
from wire.logs import configure
from wire.metrics import RpcMetrics, serve_metrics
from wire.tokens import TokenVerifier

log = logging.getLogger("factory")

DRAIN_S = 3.0
HOLD_AGAIN_S = 0.5
HOLD_TRIES = 5
BASE = "python"


@dataclass(frozen=True, slots=True)
class Identities:
    """The CA, the mint and the directories of this home."""

    ca: CertificateAuthority
    mint: TokenMint
    directory: IdentityDirectory

    def certify_gateway(self, dns_name: str) -> tuple[Identity, datetime]:
        """A certificate of the gateway's for this name."""
        identity = self.ca.issue(part_spiffe("gateway"), [dns_name], ttl_s=PART_TTL_S)
        return identity, datetime.now(UTC) + timedelta(seconds=PART_TTL_S)


def open_identities(settings: config.Config) -> Identities:
    """Open (or make) what identities need, and bring the directories up to date."""
    pki = settings.home / "pki"
    ca = CertificateAuthority.open(pki / "ca")
    mint = TokenMint.open(pki / "tokens")
    directory = IdentityDirectory(pki, ca, mint)
    directory.renew()
    return Identities(ca, mint, directory)


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers calls: gRPC, and HTTP where it was asked for."""

    grpc: Any
    http: Listener | None

    async def stop(self) -> None:
        """Let calls in flight finish, for a while."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.grpc.stop(DRAIN_S), name="stop grpc")
            if self.http is not None:
                group.create_task(self.http.stop(DRAIN_S), name="stop http")


class Factory:
    """One factory process, composed. `lanes` run in the caller's TaskGroup."""

    def __init__(self, settings: config.Config, parts: Parts, store: PostgresStore, who: Identities) -> None:
        self.settings = settings
        self.parts = parts
        self.who = who
        self.draining = asyncio.Event()
        self.health = HealthServicer()
        self.sessions = Sessions(parts.open_line)
        self.broadcasts = Broadcasts(parts, self.sessions)
        self.tasks = Tasks(parts, self.sessions)
        self.reconciler = Reconciler(parts, self.sessions)
        self.reconciler.settle = self._settle
        self.registry = RegistryFeed(parts)
        self.tools = ToolRegistry(parts, self.sessions, self.registry)
        self.reach = Reach(parts, self.registry)
        self.upstreams = Upstreams()
        self.rates = CallRates(settings.tool_calls_per_s)
        self.audit = AuditLog(parts)
        self.doorbells = Doorbells(parts, self.reconciler)
        self.renewal = Renewal(parts, self.sessions, self.registry)
        self.vector_indexing = (
            VectorIndexing(parts.store, parts.vector_index, parts.measures) if parts.vector_index else None
        )
        self.vectors = VectorSpaces(parts.store, parts.measures, self.vector_indexing)
        store.on_commit = self._committed

    def _committed(self, changed: Changed) -> None:
        self.doorbells.committed(
            list(changed.crews), changed.agents, changed.tools, log_only=changed.log_only
        )

    async def _settle(self, crew: str) -> None:
        await self.broadcasts.settle(crew)
        await self.tasks.settle(crew)

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start every lane."""
        lanes = {
            "reconciler": self.reconciler.run(),
            "registry": self.registry.run(),
            "tools": self.tools.run(),
            "broadcasts": self.broadcasts.run(),
            "tasks": self.tasks.run(),
            "audit": self.audit.run(),
            "doorbells": self.doorbells.run(),
            "renewal": self.renewal.run(),
            "identities": self.who.directory.run(),
        }
        if self.vector_indexing is not None:
            lanes["vector index"] = self.vector_indexing.run()
        return [group.create_task(lane, name=name) for name, lane in lanes.items()]

    async def serve(self) -> Serving:
        """What answers calls, listening."""
        codec = CursorCodec(await self.parts.store.secret("cursors"))
        encoder = Encoder(self.settings.gateway, self.tools.conditions)
        probe = await self.parts.driver.probe()
        facts = FactoryFacts(
            _version(), self.settings.gateway, probe, self.who.mint, self.who.certify_gateway
        )
        registry = RegistryUses(self.parts, self.reconciler, self.registry, encoder, codec, self.draining)
        crews = CrewUses(
            self.parts,
            self.reconciler,
            self.broadcasts,
            self.tasks,
            Feed(self.parts),
            encoder,
            codec,
            self.draining,
            self.vectors,
        )
        servicers = Servicers(
            CrewServicer(crews),
            FactoryServicer(registry, facts),
            ProfileServicer(self.parts, codec),
            ToolServicer(self.tool_uses(codec)),
            SkillServicer(self.parts, self.reconciler.mounts, encoder, codec),
            self.health,
        )
        verifier = TokenVerifier(self.who.mint.jwks)
        guard = build_guard(verifier, self.audit, self.registry, RpcMetrics())
        a2a_uses = A2AUses(self.parts, self.tasks, self.tools, codec, self.settings.gateway)
        server = build_server(servicers, A2AServicer(a2a_uses), guard)
        server.add_secure_port(self.settings.listen, server_credentials(self._identity()))
        await server.start()
        face = build_face(guard.guards, servicers, self.draining, self.who.mint.jwks)
        mcp.add_routes(face, self.mcp_uses(codec))
        a2a.add_routes(face, a2a_uses)
        chat.add_routes(face, Chats(self.parts, self.sessions, self.reach), self.registry.names)
        return Serving(server, await self._listen(face))

    def tool_uses(self, codec: CursorCodec) -> ToolUses:
        """What stands behind ToolService and the MCP endpoints."""
        calls = ToolCalls(self.parts, self.sessions, self.tools, self.reach)
        return ToolUses(self.tools, calls, codec, self.draining, self.rates)

    def mcp_uses(self, codec: CursorCodec) -> McpUses:
        """What stands behind MCP over HTTP."""
        relay = Relay(self.reach, self.upstreams)
        return McpUses(self.parts, self.registry, self.tools, relay, codec, self.draining, self.rates)

    async def _listen(self, face: HttpFace) -> Listener | None:
        if not self.settings.http_listen:
            return None
        listener = Listener(face, self._identity(), self.settings.http_listen)
        await listener.start()
        return listener

    def _identity(self) -> Callable[[], Identity]:
        return self.who.directory.file("factory").current


def _version() -> str:
    try:
        return version("hyper-agent-factory")
    except PackageNotFoundError:
        return "0.0.0"


@asynccontextmanager
async def open_parts(
    settings: config.Config, who: Identities, egress: Egress
) -> AsyncIterator[tuple[Parts, PostgresStore]]:
    """Open the adapters, and let go of them at the end; instances live on."""
    store = PostgresStore(settings.database_url)
    await store.open()
    driver = await kept_driver(settings, store)
    try:
        await driver.start()
        bus = RedisBus(settings.bus_url, secret=await store.secret("bus"))
        # One process listens on an address: its successor takes up its leases at once.
        owner = f"{socket.gethostname()}/{settings.listen}"
        identities = AgentIdentities(who.ca, who.mint)
        index = RedisVectorSets(settings.bus_url) if settings.vector_search == "auto" else None
        try:
            doorsteps = str(places(settings.home / "sandboxes").sockets / "doorsteps")
            parts = Parts(
                store,
                bus,
                driver,
                identities,
                GrpcLine,
                owner,
                egress=egress,
                secrets=SecretFiles(settings.home),
                skills=open_shelf(settings),
                doorsteps=doorsteps,
                cells=(settings.crew_cells, settings.cell_members),
                vector_index=index,
            )
            yield parts, store
        finally:
            await bus.close()
            if index is not None:
                await index.close()
    finally:
        await driver.close()
        await store.close()


def open_shelf(settings: config.Config) -> Shelf:
    """The skill packs of this home, and the keys that sign them."""
    return Shelf(settings.home / "skills", SkillSigner.open(settings.home / "pki" / "skills"))


def _told_to_stop() -> asyncio.Event:
    """Set at SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def run(settings: config.Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = _told_to_stop()
    who = open_identities(settings)
    ready = False
    metrics = await serve_metrics(settings.metrics, lambda: ready and not stop.is_set())
    # Beside the sandboxes' other sockets: links do not cross filesystems.
    doors = EgressProxy(places(settings.home / "sandboxes").sockets / "egress")
    async with metrics, doors as egress, open_parts(settings, who, egress) as (parts, store):
        factory = Factory(settings, parts, store, who)
        egress.record = factory.audit.add
        await profiles.ensure_built_in(parts)
        await _ensure_pool(parts, settings)
        async with asyncio.TaskGroup() as group:
            lanes = factory.start(group)
            await factory.reconciler.ready.wait()
            serving = await factory.serve()
            factory.health.set_all(True)
            ready = True
            log.info("ready", extra={"action": "ready", "listen": settings.listen, "owner": parts.owner})
            await stop.wait()
            log.info("draining", extra={"action": "draining"})
            factory.health.set_all(False)
            factory.draining.set()
            await serving.stop()
            factory.upstreams.close()
            await egress.shut()
            for lane in lanes:
                lane.cancel()
        with contextlib.suppress(FactoryError):
            await parts.store.release_crews(parts.owner)


async def _ensure_pool(parts: Parts, settings: config.Config) -> None:
    if not any(pool.base == BASE for pool in await parts.store.get_pools()):
        await parts.store.set_pool(BASE, settings.pool, None, "factory")


async def hold(settings: config.Config) -> None:
    """Keep the sandboxes' fork server alive until SIGTERM or SIGINT: it needs privileges that no factory needs."""
    stop = _told_to_stop()
    driver = driver_of(settings)
    await _start_to_hold(driver)
    async with await serve_metrics(settings.metrics, lambda: not stop.is_set()), asyncio.TaskGroup() as group:
        # Listening for exits also starts a new fork server where the old one died.
        listening = group.create_task(_listen(driver), name="exits")
        log.info("holding", extra={"action": "holding", "home": str(settings.home)})
        await stop.wait()
        listening.cancel()
    await driver.close()


async def _start_to_hold(driver: Driver) -> None:
    """A fork server that dies while we meet it gets a successor; a host that allows none is told after a while."""
    for left in reversed(range(HOLD_TRIES)):
        try:
            await driver.start()
        except FactoryError as error:
            if not left:
                raise
            log.warning("cannot start", extra={"action": "hold_again", "error": str(error)})
            await asyncio.sleep(HOLD_AGAIN_S)
        else:
            return


async def _listen(driver: Driver) -> None:
    while True:
        try:
            async for ended in driver.exits():
                log.info("instance ended", extra={"action": "instance_ended", "instance": ended.instance})
        except FactoryError as error:
            log.warning("cannot hear exits", extra={"action": "exits_lost", "error": str(error)})
        await asyncio.sleep(HOLD_AGAIN_S)


def main() -> None:
    """The program."""
    settings = config.parse(sys.argv[1:])
    configure("factory")
    job = terminate if settings.terminate else hold if settings.hold else run
    said = ""
    try:
        uvloop.run(job(settings))
    except* FactoryError as errors:
        said = str(_first_of(errors))
    if said:
        sys.exit(said)


def _first_of(errors: BaseException) -> BaseException:
    return _first_of(errors.exceptions[0]) if isinstance(errors, BaseExceptionGroup) else errors


if __name__ == "__main__":
    main()
