"""Read the server name out of the first bytes of a TLS connection, strictly and without any dependency."""

from __future__ import annotations

import re
from typing import Final

HELLO_MAX_BYTES: Final = 16_384
"""A larger ClientHello is refused; grpc's with a post-quantum key share has about 1,800."""
RECORD_MAX_BYTES: Final = 16_384

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_EXTENSION_SERVER_NAME: Final = 0
_NAME_TYPE_HOST: Final = 0
_RECORD_HEADER_BYTES: Final = 5
_HANDSHAKE_HEADER_BYTES: Final = 4
_RANDOM_BYTES: Final = 32
_SESSION_MAX_BYTES: Final = 32
_HOST_RE: Final = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


class NotAClientHello(ValueError):
    """These bytes do not begin a TLS connection that names its server."""


def server_name(data: bytes | bytearray) -> str | None:
    """The server name in lower case, or None while more bytes are needed."""
    message = _handshake(memoryview(data))
    return None if message is None else _name(_Reader(message))


def _handshake(data: memoryview) -> bytes | None:
    """The body of the ClientHello, which may lie in several records; None while it is not whole."""
    message = bytearray()
    at = 0
    while True:
        header = data[at : at + _RECORD_HEADER_BYTES]
        _check_record(header)
        if len(header) < _RECORD_HEADER_BYTES:
            return None
        end = at + _RECORD_HEADER_BYTES + int.from_bytes(header[3:5])
        message += data[at + _RECORD_HEADER_BYTES : end]
        wanted = _wanted(message)
        if wanted is not None and len(message) >= wanted:
            if len(message) > wanted:
                raise NotAClientHello("bytes after the ClientHello")
            return bytes(message[_HANDSHAKE_HEADER_BYTES:])
        if end > len(data):
            return None
        at = end


def _check_record(header: memoryview) -> None:
    if len(header) > 0 and header[0] != _HANDSHAKE:
        raise NotAClientHello("not a handshake record")
    if len(header) > 1 and header[1] != 3:
        raise NotAClientHello("not a TLS version")
    if len(header) == _RECORD_HEADER_BYTES and not 0 < int.from_bytes(header[3:5]) <= RECORD_MAX_BYTES:
        raise NotAClientHello("record of a forbidden length")


def _wanted(message: bytearray) -> int | None:
    """How many bytes the handshake message has with its header, as soon as the header is there."""
    if message and message[0] != _CLIENT_HELLO:
        raise NotAClientHello("not a ClientHello")
    if len(message) < _HANDSHAKE_HEADER_BYTES:
        return None
    length = int.from_bytes(message[1:4])
    if length > HELLO_MAX_BYTES:
        raise NotAClientHello("ClientHello is too long")
    return _HANDSHAKE_HEADER_BYTES + length


class _Reader:
    """Takes fields off the front of a byte string and refuses to run past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise NotAClientHello("a field runs past its end")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    @property
    def done(self) -> bool:
        return self._at == len(self._data)


def _name(hello: _Reader) -> str:
    hello.take(2)
    hello.take(_RANDOM_BYTES)
    if len(hello.vector(1)) > _SESSION_MAX_BYTES:
        raise NotAClientHello("session id is too long")
    suites = hello.vector(2)
    if not suites or len(suites) % 2:
        raise NotAClientHello("cipher suites of a forbidden length")
    if not hello.vector(1):
        raise NotAClientHello("no compression method")
    extensions = _Reader(hello.vector(2))
    if not hello.done:
        raise NotAClientHello("bytes after the extensions")
    return _host(_server_name_extension(extensions))


def _server_name_extension(extensions: _Reader) -> bytes:
    found: bytes | None = None
    while not extensions.done:
        kind = extensions.number(2)
        body = extensions.vector(2)
        if kind == _EXTENSION_SERVER_NAME:
            if found is not None:
                raise NotAClientHello("two server names")
            found = body
    if found is None:
        raise NotAClientHello("no server name")
    return found


def _host(extension: bytes) -> str:
    outer = _Reader(extension)
    names = _Reader(outer.vector(2))
    kind = names.number(1)
    host = names.vector(2)
    if kind != _NAME_TYPE_HOST or not names.done or not outer.done:
        raise NotAClientHello("not exactly one host name")
    if _HOST_RE.fullmatch(host) is None:
        raise NotAClientHello("host name of forbidden characters")
    return host.decode("ascii").lower()
