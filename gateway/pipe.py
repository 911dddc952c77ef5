"""Carry bytes between a client's connection and an agent's socket, with backpressure and half-closes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

TLS_READ_BYTES: Final = 65_536
BUFFER_MAX_BYTES: Final = 65_536
"""As much a connection may send before anybody takes it."""


@dataclass(slots=True)
class Traffic:
    """Plain numbers, because they are counted for every chunk."""

    bytes_in: int = 0
    bytes_out: int = 0
    connections: int = 0
    cut: int = 0
    refused: int = 0


class Held(asyncio.Protocol):
    """A connection to a server, until an end takes it: what the server says first must not be lost."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._greeting = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._greeting += data

    def take(self, far: End) -> None:
        """Give the connection, and what has come on it, to this end."""
        self.transport.set_protocol(far)
        if self._greeting:
            far.data_received(bytes(self._greeting))


class End(asyncio.Protocol):
    """One end of a pipe: what it receives, the other end sends."""

    def __init__(self, pipe: Pipe, transport: asyncio.Transport) -> None:
        self.pipe = pipe
        self.transport = transport
        self.other: End = self
        self.ended = False

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def write_eof(self) -> None:
        if not self.transport.is_closing():
            self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self.pipe.touched = True
        self.other.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other.ended:
            self.pipe.close()
        else:
            self.other.write_eof()
        return True

    def pause_writing(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is closing: there is nothing to pause
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pipe.lost(abruptly=exc is not None)


class Client(End):
    """The end towards the client."""

    def data_received(self, data: bytes) -> None:
        pipe = self.pipe
        pipe.touched = True
        pipe.traffic.bytes_in += len(data)
        self.other.write(data)

    def write(self, data: bytes) -> None:
        self.pipe.traffic.bytes_out += len(data)
        self.transport.write(data)


class TlsClient(Client):
    """The end towards a client for whom the gateway itself terminates TLS."""

    def __init__(self, pipe: Pipe, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        super().__init__(pipe, transport)
        self.shaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._early = bytearray()

    def join(self, other: End) -> None:
        """Send what has come so far to the other end, and from now on everything."""
        self.other = other
        other.write(bytes(self._early))
        self._early.clear()

    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def write_eof(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # the client's own close may follow later, or never
            self._tls.unwrap()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.pipe.touched = True
        self.pipe.traffic.bytes_in += len(data)
        self._incoming.write(data)
        try:
            if not self.shaken.done():
                self._tls.do_handshake()
                self.shaken.set_result(None)
            self._decrypt()
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            self._flush()
        except ssl.SSLError as error:
            self._flush()  # the alert tells the client why
            if not self.shaken.done():
                self.shaken.set_exception(error)
            self.pipe.close()
        else:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.shaken.done():
            self.shaken.set_exception(ConnectionResetError("client left during the TLS handshake"))
        super().connection_lost(exc)

    def _decrypt(self) -> None:
        while plain := self._tls.read(TLS_READ_BYTES):
            if self.other is not self:
                self.other.write(plain)
            elif len(self._early) + len(plain) <= BUFFER_MAX_BYTES:
                self._early += plain
            else:
                self.pipe.close()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            super().write(data)


class Pipe:
    """Two ends. It ends as a whole: what one end has sent is still delivered, then both are closed."""

    def __init__(self, traffic: Traffic, on_end: Callable[[Pipe], object]) -> None:
        self.traffic = traffic
        self.touched = True
        self.ends: list[End] = []
        self._on_end = on_end
        self._over = False
        self._idle = 0

    @classmethod
    def join(
        cls,
        client: asyncio.Transport,
        server: Held,
        first: bytes,
        traffic: Traffic,
        on_end: Callable[[Pipe], object],
    ) -> Pipe:
        """Connect a client and a server; `first` is what the client has sent already."""
        pipe = cls(traffic, on_end)
        near, far = Client(pipe, client), End(pipe, server.transport)
        near.other, far.other = far, near
        pipe.ends = [near, far]
        traffic.bytes_in += len(first)
        client.set_protocol(near)
        far.write(first)
        server.take(far)
        return pipe

    def close(self) -> None:
        """Close both ends after what is still to be sent."""
        for end in self.ends:
            end.transport.close()

    def cut(self) -> None:
        """Close both ends at once."""
        self.traffic.cut += 1
        for end in self.ends:
            end.transport.abort()

    def idle_sweeps(self) -> int:
        """How many sweeps in a row found that no byte had come."""
        self._idle = 0 if self.touched else self._idle + 1
        self.touched = False
        return self._idle

    def lost(self, *, abruptly: bool) -> None:
        """One end is gone."""
        for end in self.ends:
            if abruptly:
                end.transport.abort()
            else:
                end.transport.close()
        if not self._over:
            self._over = True
            self._on_end(self)
