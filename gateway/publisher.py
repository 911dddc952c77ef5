"""Publish the document to Traefik, and see to it that Traefik has taken it in."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from gateway.factory import Issued
from gateway.files import key_pair, sweep, versioned, write
from gateway.registry import Registry, Route
from gateway.routes import (
    CONFIGZ_PATH,
    GATEWAY_AUTHORITY,
    VERSION_HEADER,
    KeyPair,
    Settings,
    group_names,
    routes,
)
from gateway.routes import versioned as versioned_document
from gateway.web import Page
from wire.errors import FactoryError
from wire.identity import Identity

LOOK_EVERY_S: Final = 1.0
"""Identity and certificates are looked at so often; a change of a group is noticed at once."""
GAP_MIN_S: Final = 0.1
PROBE_EVERY_S: Final = 0.05
PROBE_WITHIN_S: Final = 2.0
ASSURE_EVERY_S: Final = 5.0
HEAD_MAX_BYTES: Final = 8192

log = structlog.get_logger()

Groups = Mapping[str, Sequence[str]]
"""The names of the members by the name of the group."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where things listen, as `host:port`."""

    public: str
    factory: str
    relay: str
    members: str
    absent: str
    factory_http: str = ""


class Publisher:
    """Renders the document when something in it changed; the last good one lies on disk."""

    def __init__(
        self,
        registry: Registry,
        *,
        identity: Callable[[], Identity],
        issue: Callable[[str], Awaitable[Issued]],
        addresses: Addresses,
        state: Path,
    ) -> None:
        self._registry = registry
        self._identity = identity
        self._issue = issue
        self._addresses = addresses
        self._file = state / "document.json"
        self._tls = state / "tls"
        self._tls.mkdir(mode=0o700, exist_ok=True)
        self._certificates: dict[str, tuple[KeyPair, float]] = {}
        self._body = self._last_good()
        self._published_groups: Groups = {}
        self.applied_groups: Groups = {}
        self._news = asyncio.Event()
        self._probing: tuple[Identity, ssl.SSLContext] | None = None
        self.published = ""
        self.applied = ""
        self.answered_at_s = time.monotonic()

    def page(self) -> Page:
        """What Traefik polls. Never an empty document: it would take that as an order to drop all routes."""
        if not self._body:
            return Page(503, b"the registry has not been read yet\n")
        return Page(200, self._body, "application/json")

    def routed(self, group: str) -> bool:
        """Whether Traefik has a route to the group now."""
        return group in self.applied_groups

    async def run(self) -> None:
        """Publish each change until cancelled."""
        await self._registry.synced.wait()
        changed = self._registry.groups_changed
        while True:
            changed.clear()
            try:
                await self._publish()
            except (FactoryError, OSError) as error:
                log.warning("cannot publish", action="document.failed", error=str(error))
            await asyncio.sleep(GAP_MIN_S)
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await changed.wait()
            except TimeoutError:
                continue

    async def _publish(self) -> None:
        identity = self._identity()
        members = [agent for agent in self._registry.group_members() if agent.serving]
        certificates = await self._certified(group_names(members))
        settings = await asyncio.to_thread(self._settings, identity, certificates)
        version, body = versioned_document(routes(members, settings))
        if version == self.published:
            return
        await asyncio.to_thread(write, self._file, body)
        self._body, self.published = body, version
        self._published_groups = _groups(members, certificates)
        self._news.set()
        log.info("published", action="document.published", version=version, groups=len(certificates))

    def _settings(self, identity: Identity, groups: dict[str, KeyPair]) -> Settings:
        return Settings(
            factory=self._addresses.factory,
            relay=self._addresses.relay,
            members=self._addresses.members,
            absent=self._addresses.absent,
            ca=versioned(self._tls, "ca", ".pem", identity.ca_pem),
            identity=key_pair(self._tls, "gateway", identity.certificate_pem, identity.key_pem),
            groups=groups,
            factory_http=self._addresses.factory_http,
        )

    async def _certified(self, names: frozenset[str]) -> dict[str, KeyPair]:
        """A certificate for each group; a group for which there is none yet stays out and is tried again."""
        for name in self._certificates.keys() - names:
            del self._certificates[name]
        for name in names:
            held = self._certificates.get(name)
            if held is not None and time.monotonic() < held[1]:
                continue
            try:
                issued = await self._issue(name)
            except FactoryError as error:
                log.warning("no certificate", action="group.certificate", group=name, error=str(error))
                continue
            pair = await asyncio.to_thread(key_pair, self._tls, name, issued.certificate_pem, issued.key_pem)
            self._certificates[name] = (pair, issued.renew_at_s)
        return {name: pair for name, (pair, _) in self._certificates.items()}

    # -- the barrier -------------------------------------------------------------------------------------

    async def confirm(self) -> None:
        """Ask through the public port which document is applied: often after a change, else now and then."""
        await self._news.wait()
        while True:
            version, groups = self.published, self._published_groups
            answered = await self._probe()
            if answered:
                self.answered_at_s = time.monotonic()
            if version and answered == version and self.applied != version:
                await self._apply(version, groups)
            self._news.clear()
            settled = bool(self.published) and self.applied == self.published
            try:
                async with asyncio.timeout(ASSURE_EVERY_S if settled else PROBE_EVERY_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _apply(self, version: str, groups: Groups) -> None:
        self.applied, self.applied_groups = version, groups
        if version == self.published:
            await asyncio.to_thread(sweep, self._tls, self._body)
        for group in groups:
            self._registry.ring(group)
        log.info("applied", action="document.applied", version=version)

    async def _probe(self) -> str:
        """The version that Traefik says it has applied; empty where it does not answer."""
        try:
            async with asyncio.timeout(PROBE_WITHIN_S):
                return await self._ask()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError, FactoryError):
            return ""

    async def _ask(self) -> str:
        host, _, port = self._addresses.public.rpartition(":")
        reader, writer = await asyncio.open_connection(
            host,
            int(port),
            ssl=await self._context(),
            server_hostname=GATEWAY_AUTHORITY,
            limit=HEAD_MAX_BYTES,
        )
        try:
            request = f"GET {CONFIGZ_PATH} HTTP/1.1\r\nHost: {GATEWAY_AUTHORITY}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            await writer.drain()
            return _version((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
        finally:
            writer.close()

    async def _context(self) -> ssl.SSLContext:
        identity = self._identity()
        if self._probing is None or self._probing[0] is not identity:
            self._probing = (identity, await asyncio.to_thread(_client_context, identity, self._tls))
        return self._probing[1]

    def _last_good(self) -> bytes:
        """The document of our predecessor, if what it leads to is still where it was."""
        try:
            body = self._file.read_bytes()
            services = json.loads(body)["tcp"]["services"]
            wanted = {"factory": self._addresses.factory, "relay": self._addresses.relay}
            if self._addresses.factory_http:
                wanted["factory_http"] = self._addresses.factory_http
            led = {name: services[name]["loadBalancer"]["servers"][0]["address"] for name in wanted}
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return b""  # none, or one that a power cut has left in pieces
        return body if led == wanted else b""


def _groups(members: Iterable[Route], certified: Container[str]) -> Groups:
    groups: dict[str, list[str]] = {}
    for agent in members:
        if agent.group in certified:
            groups.setdefault(agent.group, []).append(agent.authority)
    return groups


def _client_context(identity: Identity, directory: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=identity.ca_pem.decode())
    pair = key_pair(directory, "gateway", identity.certificate_pem, identity.key_pem)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def _version(head: str) -> str:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == VERSION_HEADER.lower():
            return value.strip()
    return ""
