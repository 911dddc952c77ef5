"""Listen for HTTPS, client certificate required; certificates are renewed, connections bounded and drained."""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from factory_server.api.http.app import HttpFace
from factory_server.api.http.failures import refusal
from wire.identity import Identity

log = logging.getLogger("factory.http")

CONNECTIONS_MAX: Final = 1000
BACKLOG: Final = 256
HANDSHAKE_MAX_S: Final = 5.0
KEEPALIVE_S: Final = 60.0
"""A connection without a request is cut off after so long, also one whose request is half said."""
LINE_MAX_BYTES: Final = 8190
FIELD_MAX_BYTES: Final = 8190
HEADERS_MAX: Final = 64
LINGER_S: Final = 2.0


class RenewedContext:
    """A TLS context for the listener: each new connection is shown the identity of now."""

    def __init__(self, identity: Callable[[], Identity]) -> None:
        self._identity = identity
        self._shown = identity()
        self._current = tls_context(self._shown)
        self.front = tls_context(self._shown)
        self.front.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _front: ssl.SSLContext) -> None:
        identity = self._identity()
        if identity is not self._shown:
            # Once in half a life: a millisecond.
            self._current, self._shown = tls_context(identity), identity
        connection.context = self._current


def tls_context(identity: Identity) -> ssl.SSLContext:
    """A server's context that asks for a certificate of ours and never takes a session up again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.ca_pem.decode())
    with tempfile.NamedTemporaryFile() as file:  # 0600; OpenSSL reads keys from files only
        file.write(identity.key_pem + b"\n" + identity.certificate_pem)
        file.flush()
        context.load_cert_chain(file.name)
    context.set_alpn_protocols(["http/1.1"])
    # A resumed session would not look at the client's certificate again.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


class _Connection(web.RequestHandler):
    """One connection; what is not even a request is answered in JSON, too."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("cannot answer", exc_info=exc, extra={"action": "http_failed", "path": request.path})
        if request.writer.output_size > 0:
            raise ConnectionResetError("the answer had begun")
        answer = refusal(status, "internal error" if status >= 500 else "this is no HTTP/1.1 request of ours")
        answer.force_close()
        return answer


class _Full(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Listener:
    """The face on its address, from `start` to `stop`."""

    def __init__(self, face: HttpFace, identity: Callable[[], Identity], address: str) -> None:
        self._runner = web.AppRunner(face.app, handler_cancellation=True, access_log=None)
        self._identity = identity
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(
            self._accept,
            self._host.strip("[]"),
            self._port,
            ssl=RenewedContext(self._identity).front,
            ssl_handshake_timeout=HANDSHAKE_MAX_S,
            backlog=BACKLOG,
        )

    def _accept(self) -> asyncio.Protocol:
        manager: Any = self._runner.server
        if len(manager.connections) >= CONNECTIONS_MAX:
            return _Full()
        return _Connection(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,  # type: ignore[arg-type]  # no log: the guard counts and audits
            max_line_size=LINE_MAX_BYTES,
            max_field_size=FIELD_MAX_BYTES,
            max_headers=HEADERS_MAX,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )

    async def stop(self, drain_s: float) -> None:
        """Accept nothing more, let requests in flight finish for so long, end the rest."""
        if self._server is not None:
            self._server.close()
        manager = self._runner.server
        if manager is not None:
            manager.pre_shutdown()
            await manager.shutdown(drain_s)
        await self._runner.cleanup()
