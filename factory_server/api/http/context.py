"""One HTTP request as the guard knows calls: who is at the other end, what they show, how the call ends."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

import grpc
from aiohttp import web
from google.rpc import status_pb2

from factory_server.api.http.failures import Aborted
from wire.peers import FORWARDED_CERTIFICATE
from wire.status import DETAILS_KEY

AUTHORIZATION: Final = "authorization"
PEERS_MAX: Final = 1024

Shown = Mapping[str, Iterable[bytes]]


class Peers:
    """What client certificates say, in the words of grpc's authentication context; each is read once."""

    def __init__(self) -> None:
        self._shown: OrderedDict[bytes, Shown] = OrderedDict()

    def of(self, request: web.Request) -> Shown:
        """What the peer of this request has shown; the listener has verified it."""
        tls = request.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True) if tls is not None else None
        if der is None:
            # Not to be taken for a port that the file system protects.
            return {"ssl_tls_version": [b"none"]}
        shown = self._shown.get(der)
        if shown is None:
            shown = self._shown[der] = _read(der, tls.getpeercert())
            if len(self._shown) > PEERS_MAX:
                self._shown.popitem(last=False)
        return shown


def _read(der: bytes, told: Mapping[str, Any]) -> Shown:
    import ssl

    uris = [value.encode() for kind, value in told.get("subjectAltName", ()) if kind == "URI"]
    units = [
        b"OU=" + value.replace(",", r"\,").encode()
        for relative in told.get("subject", ())
        for name, value in relative
        if name == "organizationalUnitName"
    ]
    return {
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(der).encode()],
        "peer_uri": uris,
        "x509_subject": [b",".join(units)],
        "ssl_tls_version": [b"TLS"],
    }


Write = Callable[[Any], Awaitable[None]]


class HttpContext:
    """The guard's and the handlers' view of one HTTP request; `write` sends one message of a stream."""

    def __init__(self, request: web.Request, peers: Peers, write: Write | None = None) -> None:
        self._request = request
        self._peers = peers
        self._write = write
        self._code: grpc.StatusCode | None = None

    def auth_context(self) -> Shown:
        return self._peers.of(self._request)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Only what proves who calls; each occurrence, so that one sent twice is seen."""
        headers = self._request.headers
        return [
            (name, value)
            for name in (AUTHORIZATION, FORWARDED_CERTIFICATE)
            for value in headers.getall(name, ())
        ]

    def peer(self) -> str:
        name = self._request.get_extra_info("peername")
        return f"ipv4:{name[0]}:{name[1]}" if name else "unknown"

    def time_remaining(self) -> float | None:
        return None  # HTTP has no deadline of the caller's: the method's own holds

    def cancelled(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    def code(self) -> grpc.StatusCode | None:
        return self._code

    async def write(self, message: Any) -> None:
        assert self._write is not None  # only methods that stream write
        await self._write(message)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> NoReturn:
        self._code = code
        status = status_pb2.Status(code=code.value[0], message=details)
        for key, value in trailing_metadata:
            if key == DETAILS_KEY and isinstance(value, bytes):
                status = status_pb2.Status.FromString(value)
        raise Aborted(status)
