"""One HTTP/1.1 request from inside a sandbox: directly, or through the crew's way out; streamed, bounded, checked.

A connection serves one request: a model's answer takes so long that a handshake does not count, and no
connection outlives the conversation that wanted it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from wire.errors import FieldViolation, Invalid

HEAD_MAX_BYTES: Final = 64 * 1024
CHUNK_BYTES: Final = 64 * 1024
CONNECT_MAX_S: Final = 10.0
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS: Final = {"http": 80, "https": 443}
_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


class LinkBroken(Exception):
    """The exchange did not come to its end; what the other side did of it nobody knows."""


class NotLed(Exception):
    """There is no way to the other side, or it is not who it should be: no repeat will help."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A base URL, taken apart."""

    host: str
    port: int
    secure: bool
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.secure else "http"] else f"{host}:{self.port}"


def endpoint(base_url: str) -> Endpoint:
    """`Invalid` for a URL that is none, or that carries more than a place."""
    try:
        parts = urlsplit(base_url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise _invalid("must be http:// or https:// with a host") from error
    if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
        raise _invalid("must have a host, and neither user, query nor fragment")
    if not parts.path.isascii() or any(mark <= " " for mark in parts.path + parts.hostname):
        raise _invalid("must be written in ASCII, without spaces")
    return Endpoint(parts.hostname, port, parts.scheme == "https", parts.path.rstrip("/"))


def _invalid(why: str) -> Invalid:
    return Invalid(f"the model's base_url {why}", violations=[FieldViolation("spec.model.base_url", why)])


@dataclass(frozen=True, slots=True)
class WayOut:
    """How to get there: the crew's proxy where it has one, and the roots that are trusted beside the system's."""

    proxy: Path | None = None
    ca_file: str = ""

    async def connect(self, to: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, with TLS where the endpoint says so. `LinkBroken`, `NotLed`."""
        context = _trust(self.ca_file) if to.secure else None
        name = to.host if to.secure else None
        try:
            async with asyncio.timeout(CONNECT_MAX_S):
                if self.proxy is None or to.host in LOOPBACK:
                    return await asyncio.open_connection(
                        to.host, to.port, ssl=context, server_hostname=name, limit=HEAD_MAX_BYTES
                    )
                tunnel = await _tunnel(self.proxy, to)
                return await asyncio.open_connection(
                    sock=tunnel, ssl=context, server_hostname=name, limit=HEAD_MAX_BYTES
                )
        except ssl.SSLCertVerificationError as error:
            raise NotLed(f"the certificate of {to.host} is not trusted: {error.verify_message}") from error
        except TimeoutError as error:
            raise LinkBroken(f"{to.host} did not answer within {CONNECT_MAX_S:g} s") from error
        except OSError as error:
            raise self._unreached(to, error) from error

    def _unreached(self, to: Endpoint, error: OSError) -> LinkBroken | NotLed:
        """Whether a repeat may help: not where the crew may not go out, and so has neither names nor routes."""
        why = f"cannot connect to {to.host}: {error.strerror or type(error).__name__}"
        nowhere = isinstance(error, socket.gaierror) or error.errno in _NO_ROUTE
        if self.proxy is None and to.host not in LOOPBACK and nowhere:
            return NotLed(f"{why}; the crew has no way out (network.allowEgress is not set)")
        return LinkBroken(why)


@functools.cache
def _trust(ca_file: str) -> ssl.SSLContext:
    """Certificates and names are always checked; reading the system's roots takes a moment, so once."""
    context = ssl.create_default_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


async def _tunnel(proxy: Path, to: Endpoint) -> socket.socket:
    """A socket that the crew's proxy leads to the endpoint."""
    loop = asyncio.get_running_loop()
    tunnel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(tunnel, str(proxy))
        target = f"{to.host}:{to.port}"
        await loop.sock_sendall(tunnel, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        _check_led(await _tunnel_head(tunnel), to.host)
    except BaseException:
        tunnel.close()
        raise
    return tunnel


async def _tunnel_head(tunnel: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await asyncio.get_running_loop().sock_recv(tunnel, CHUNK_BYTES)
        if not data or len(head) > HEAD_MAX_BYTES:
            raise LinkBroken("the crew's way out closed the connection")
        head += data
    return head


def _check_led(head: bytes, host: str) -> None:
    """The way out says yes, or why not; what it refuses, it refuses again."""
    _, _, status = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
    if status.startswith("200"):
        return
    why = f"the crew's way out refuses {host}: {status[:200]}"
    raise NotLed(why) if status.startswith("403") else LinkBroken(why)


class Response:
    """Status and headers (names in lower case), and the body as it comes."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def body(self, most_bytes: int) -> bytes:
        """The whole body; `LinkBroken` above the limit."""
        found = bytearray()
        async for data in self.pieces():
            found += data
            if len(found) > most_bytes:
                raise LinkBroken(f"the answer has more than {most_bytes} bytes")
        return bytes(found)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body in pieces; `LinkBroken` where it ends before its end."""
        try:
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                async for data in self._chunks():
                    yield data
            elif "content-length" in self.headers:
                async for data in self._exactly(int(self.headers["content-length"])):
                    yield data
            else:
                while data := await self._reader.read(CHUNK_BYTES):
                    yield data
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise LinkBroken(f"the answer broke off ({type(error).__name__})") from error

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            async for data in self._exactly(size):
                yield data
            await self._reader.readexactly(2)
        while await self._reader.readuntil(b"\r\n") != b"\r\n":
            continue

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size > 0:
            data = await self._reader.read(min(size, CHUNK_BYTES))
            if not data:
                raise EOFError
            size -= len(data)
            yield data


@asynccontextmanager
async def post(
    to: Endpoint, path: str, headers: Mapping[str, str], body: bytes, way: WayOut
) -> AsyncIterator[Response]:
    """Send one request; the connection is closed at the end, whatever was read of the answer."""
    reader, writer = await way.connect(to)
    try:
        try:
            writer.write(_head(to, path, headers, len(body)) + body)
            await writer.drain()
            response = await _response(reader)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise LinkBroken(f"{to.host} closed the connection ({type(error).__name__})") from error
        yield response
    finally:
        writer.transport.abort()


def _head(to: Endpoint, path: str, headers: Mapping[str, str], size: int) -> bytes:
    always = {"Host": to.authority, "Connection": "close", "Content-Length": str(size)}
    lines = [f"POST {to.path}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in {**always, **headers}.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _response(reader: asyncio.StreamReader) -> Response:
    """The answer's head, after any interim ones."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")[:-2]
        version, code, *_ = first.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        if int(code) >= 200:
            return Response(int(code), headers, reader)
