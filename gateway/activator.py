"""Answer calls to agents that cannot be reached with a real gRPC error instead of a broken connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import grpc
import grpc.aio
import structlog

from gateway.factory import Issued
from gateway.opening import Opening
from gateway.pipe import End, Held, Pipe, TlsClient, Traffic
from gateway.ports import LOOPBACK
from wire.errors import Denied, FactoryError, Unavailable
from wire.identity import Identity
from wire.status import abort

CONTEXTS_MAX: Final = 256
CONTEXT_TRUSTED_S: Final = 2.0
"""The factory's word that no agent has a name is good for so long: the name may be given away meanwhile."""
ISSUING_MAX: Final = 4
"""Names are asked for before the client is authenticated: few at a time."""
ISSUE_WITHIN_S: Final = 3.0
HANDSHAKE_WITHIN_S: Final = 5.0
ANSWERED_MAX: Final = 512
CONNECTION_AGE_MAX_MS: Final = 100
"""Soon the client shall come anew, told by GOAWAY: the agent may be there by then."""
CONNECTION_GRACE_MS: Final = 1_000
COME_ANEW_AFTER_S: Final = CONNECTION_AGE_MAX_MS / 1000

log = structlog.get_logger()

Reachable = Callable[[str], bool]
"""Whether an agent answers to the name now."""


@dataclass(slots=True)
class Verdicts:
    """The error of each connection, by the peer's name that the server sees."""

    reachable: Reachable
    held: dict[str, tuple[str, FactoryError]] = field(default_factory=dict)

    def of(self, peer: str) -> FactoryError:
        if peer not in self.held:
            return Unavailable("nobody serves under this name now")
        authority, error = self.held[peer]
        if self.reachable(authority):
            return Unavailable(
                f"'{authority}' can be reached again: connect anew", retry_after_s=COME_ANEW_AFTER_S
            )
        return error


class _Refuse(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Ends every call with the error that belongs to its connection."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._handler = grpc.stream_stream_rpc_method_handler(cast(Any, self._refuse))
        self._verdicts = verdicts

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handler

    async def _refuse(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await abort(cast(Any, context), self._verdicts.of(context.peer()))


class Activator:
    """A small gRPC server behind a private socket, and the TLS in front of it."""

    def __init__(
        self,
        *,
        identity: Callable[[], Identity],
        issue: Callable[[str], Awaitable[Issued]],
        reachable: Reachable,
        state: Path,
        traffic: Traffic,
    ) -> None:
        self._identity = identity
        self._issue = issue
        self._socket = str(state / "answers.sock")
        Path(self._socket).unlink(missing_ok=True)
        self._state = state
        self._traffic = traffic
        self._verdicts = Verdicts(reachable)
        self._contexts: OrderedDict[str, tuple[ssl.SSLContext, float]] = OrderedDict()
        self._issuing = asyncio.Semaphore(ISSUING_MAX)
        self._numbers = itertools.count()
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_connection_age_ms", CONNECTION_AGE_MAX_MS),
                ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", 64 * 1024),
            )
        )
        self._server.add_generic_rpc_handlers((_Refuse(self._verdicts),))
        self._server.add_insecure_port(f"unix:{self._socket}")
        self.absent_at = f"{LOOPBACK}:{self._server.add_insecure_port(f'{LOOPBACK}:0')}"
        """Where Traefik leads calls on a connection to a group that has no route any more."""
        self.answered = 0

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    async def answer(self, client: Opening, authority: str, error: FactoryError) -> bool:
        """Take the connection over and end its calls with the error; False where the name is not ours."""
        if len(self._verdicts.held) >= ANSWERED_MAX:
            return False
        try:
            async with asyncio.timeout(ISSUE_WITHIN_S):
                context = await self._context(authority)
        except Denied:
            return False  # an agent's own name: nobody else may speak under it
        except (FactoryError, TimeoutError) as cause:
            log.warning(
                "cannot get a certificate", action="activator.issue", authority=authority, error=str(cause)
            )
            return False
        await self._serve(client, authority, error, context)
        return True

    async def _serve(
        self, client: Opening, authority: str, error: FactoryError, context: ssl.SSLContext
    ) -> None:
        key = f"hyperfactory-gateway-{os.getpid()}-{next(self._numbers)}"
        peer = f"unix-abstract:{key}"
        pipe = Pipe(self._traffic, lambda _: self._verdicts.held.pop(peer, None))
        near = TlsClient(pipe, client.transport, context)
        pipe.ends = [near]
        self._verdicts.held[peer] = (authority, error)
        client.transport.set_protocol(near)
        near.data_received(client.hand_over())
        try:
            await self._join(pipe, near, key)
        except asyncio.CancelledError:
            pipe.close()
            raise
        self.answered += 1

    async def _join(self, pipe: Pipe, near: TlsClient, key: str) -> None:
        """Lead the client to the server, once it has proven who it is."""
        try:
            async with asyncio.timeout(HANDSHAKE_WITHIN_S):
                await near.shaken
                server = await _connect_as(key, self._socket)
        except (OSError, TimeoutError) as error:  # SSLError is an OSError
            log.info("client did not prove itself", action="activator.handshake", error=str(error))
            pipe.close()
            return
        far = End(pipe, server.transport)
        far.other = near
        pipe.ends.append(far)
        near.join(far)
        server.take(far)
        if near.transport.is_closing():
            pipe.close()

    async def _context(self, authority: str) -> ssl.SSLContext:
        held = self._contexts.get(authority)
        if held is not None and time.monotonic() < held[1]:
            self._contexts.move_to_end(authority)
            return held[0]
        async with self._issuing:
            issued = await self._issue(authority)
        context = await asyncio.to_thread(_context_of, issued, self._identity().ca_pem, self._state)
        self._contexts[authority] = (context, min(issued.renew_at_s, time.monotonic() + CONTEXT_TRUSTED_S))
        self._contexts.move_to_end(authority)
        while len(self._contexts) > CONTEXTS_MAX:
            self._contexts.popitem(last=False)
        return context


async def _connect_as(key: str, path: str) -> Held:
    """Connect under a name of our own: it is how the server sees which connection a call came on."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(f"\0{key}")
        await loop.sock_connect(sock, path)
        _, server = await loop.create_unix_connection(Held, sock=sock)
    except BaseException:
        sock.close()
        raise
    return server


def _context_of(issued: Issued, ca_pem: bytes, scratch: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca_pem.decode())
    context.set_alpn_protocols(["h2"])
    with contextlib.ExitStack() as stack:  # the ssl module loads a key from files only
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch)))
        chain, key = folder / "chain", folder / "key"
        chain.write_bytes(issued.certificate_pem)
        key.touch(0o600)
        key.write_bytes(issued.key_pem)
        context.load_cert_chain(chain, key)
    return context
