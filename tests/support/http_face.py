"""A factory's MCP endpoints on a TLS port of their own, and clients with identities of ours."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from factory_server.api.http import mcp
from factory_server.api.http.app import HttpFace, anybody
from factory_server.api.http.build import JWKS_PATH
from factory_server.api.http.listener import Listener
from factory_server.api.http.mcp_crew import CrewEndpoint
from factory_server.api.server import build_guard
from factory_server.core.cursor import CursorCodec
from factory_server.identity.directory import OPERATOR
from support.site import Plant
from wire.identity import Identity, operator_spiffe, thumbprint
from wire.mcp.revisions import META_CLIENT_CAPABILITIES, META_VERSION, STATELESS
from wire.metrics import RpcMetrics
from wire.tokens import TokenVerifier

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Caller:
    """A client of the face with one identity."""

    session: aiohttp.ClientSession
    url: str
    identity: Identity

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """A request; an asynchronous context manager, as aiohttp has it."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        sent["authorization"] = f"Bearer {self.identity.token}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.post(self.url + path, data=data, headers=sent, ssl=tls(self.identity))

    async def delete(self, path: str, **headers: str) -> int:
        """The status of a DELETE."""
        sent = {"authorization": f"Bearer {self.identity.token}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.delete(self.url + path, headers=sent, ssl=tls(self.identity)) as answer:
            return answer.status

    async def ask(self, path: str, body: Any, **headers: str) -> Answer:
        """A request and its whole answer."""
        async with self.post(path, body, **headers) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def modern(self, path: str, method: str, params: Any = None, **headers: str) -> Answer:
        """A request of the stateless revision."""
        params = dict(params or {})
        params.setdefault("_meta", {})
        params["_meta"] |= {META_VERSION: STATELESS, META_CLIENT_CAPABILITIES: {}}
        sent = {"mcp_protocol_version": STATELESS, "mcp_method": method}
        if isinstance(params.get("name"), str):
            sent["mcp_name"] = params["name"]
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return await self.ask(path, body, **(sent | headers))


_CONTEXTS: dict[bytes, ssl.SSLContext] = {}


def tls(identity: Identity) -> ssl.SSLContext:
    """A client's context that shows this identity."""
    context = _CONTEXTS.get(identity.certificate_pem)
    if context is None:
        context = ssl.create_default_context(cadata=identity.ca_pem.decode())
        context.set_alpn_protocols(["http/1.1"])
        with tempfile.NamedTemporaryFile() as file:
            file.write(identity.key_pem + b"\n" + identity.certificate_pem)
            file.flush()
            context.load_cert_chain(file.name)
        _CONTEXTS[identity.certificate_pem] = context
    return context


@dataclass
class Face:
    """The endpoints of one factory."""

    plant: Plant
    port: int
    session: aiohttp.ClientSession
    crews: CrewEndpoint

    def operator(self, scopes: Iterable[str] = ("admin",)) -> Caller:
        """An operator whose token has these scopes."""
        who = self.plant.factory.who
        identity = who.directory.file("operator").current()
        bound = thumbprint(identity.certificate_pem)
        token = who.mint.mint(operator_spiffe(OPERATOR), thumbprint=bound, scopes=set(scopes), ttl_s=60.0)
        return self.caller(Identity(identity.certificate_pem, identity.key_pem, identity.ca_pem, token))

    def caller(self, identity: Identity) -> Caller:
        return Caller(self.session, f"https://localhost:{self.port}", identity)


async def _keys(_request: web.Request) -> web.Response:
    """What the proxy looks at to see whether anybody answers."""
    return web.json_response({"keys": []})


@asynccontextmanager
async def open_face(plant: Plant) -> AsyncIterator[Face]:
    """Listen on loopback."""
    factory = plant.factory
    codec = CursorCodec(await plant.store.secret("cursors"))
    verifier = TokenVerifier(factory.who.mint.jwks)
    guard = build_guard(verifier, factory.audit, factory.registry, RpcMetrics(CollectorRegistry()))
    face = HttpFace(guard.guards, factory.draining)
    crews = mcp.add_routes(face, factory.mcp_uses(codec))
    face.add("GET", JWKS_PATH, _keys, anybody(JWKS_PATH))
    listener = Listener(face, factory.who.directory.file("factory").current, "127.0.0.1:0")
    await listener.start()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            yield Face(plant, listener.port, session, crews)
    finally:
        factory.draining.set()
        await listener.stop(1.0)
        factory.upstreams.close()
        await asyncio.sleep(0)
