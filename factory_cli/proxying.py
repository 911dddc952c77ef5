"""Offer the factory's HTTP face on loopback, with the operator's credentials added; as `kubectl proxy` does."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from factory_cli.client import ClientFile, read_client_file
from factory_cli.failures import CommandFailedError, NotConnectedError
from factory_cli.session import Session
from wire.identity import Identity

LOOPBACK: Final = "127.0.0.1"
CONNECT_MAX_S: Final = 10.0
DRAIN_S: Final = 2.0
CONNECTIONS_MAX: Final = 500
PASSED_MAX_BYTES: Final = 64 * 1024
TRIED: Final = "/.well-known/jwks.json"

_LOCAL_HOST_RE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_LOCAL_ORIGIN_RE = re.compile(rf"https?://{_LOCAL_HOST_RE.pattern}", re.IGNORECASE)

# Of one connection each, or said anew by the proxy: never passed on. A caller's own authorization is replaced.
_REQUEST_DROPS: Final = frozenset(
    {
        *("host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("proxy-authenticate", "proxy-authorization", "proxy-connection", "content-length"),
        *("authorization", "x-forwarded-tls-client-cert"),
    }
)
_RESPONSE_DROPS: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
    }
)


class Contexts:
    """TLS contexts for the gateway; a renewed certificate makes a new one, and with it new connections."""

    def __init__(self, identity: Callable[[], Identity]) -> None:
        self._identity = identity
        self._made: tuple[bytes, ssl.SSLContext] | None = None

    def current(self) -> tuple[ssl.SSLContext, str]:
        """The context and the token that belongs to its certificate."""
        identity = self._identity()
        if self._made is None or self._made[0] != identity.certificate_pem:
            self._made = (identity.certificate_pem, _context(identity))
        return self._made[1], identity.token


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=identity.ca_pem.decode())
    with tempfile.NamedTemporaryFile() as file:  # 0600; OpenSSL reads keys from files only
        file.write(identity.key_pem + b"\n" + identity.certificate_pem)
        file.flush()
        context.load_cert_chain(file.name)
    context.set_alpn_protocols(["http/1.1"])  # the gateway leads who offers h2 to the gRPC server
    return context


class Proxy:
    """Forwards requests; nothing of them is kept."""

    def __init__(self, client: ClientFile, session: aiohttp.ClientSession) -> None:
        self._client = client
        self._session = session
        self._contexts = Contexts(client.identity)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if (why := foreign(request)) is not None:
            return _refusal(403, 7, f"this proxy serves programs of this machine only: {why}")
        try:
            context, token = self._contexts.current()
        except Exception as error:  # the files may be gone with the stack
            return _refusal(502, 14, f"cannot read the credentials: {error}")
        headers = _passed(request.headers, _REQUEST_DROPS)
        headers["Host"] = self._client.authority
        headers["Authorization"] = f"Bearer {token}"
        if "Content-Length" in request.headers:
            headers["Content-Length"] = request.headers["Content-Length"]
        try:
            async with self._session.request(
                request.method,
                URL(f"https://{self._client.endpoint}{request.raw_path}", encoded=True),
                headers=headers,
                data=request.content if request.body_exists else None,
                ssl=context,
                server_hostname=self._client.authority,
                allow_redirects=False,
            ) as answer:
                return await _relay(request, answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            if request.writer.output_size > 0:
                raise ConnectionResetError("the factory broke off") from error
            return _refusal(502, 14, f"cannot reach the factory: {cause_of(error)}")

    async def reach(self) -> None:
        """Fail now rather than at the first request."""
        context, _ = self._contexts.current()
        name = self._client.authority
        asking = self._session.get(
            URL(f"https://{self._client.endpoint}{TRIED}"),
            ssl=context,
            server_hostname=name,
            headers={"Host": name},
        )
        try:
            async with asyncio.timeout(CONNECT_MAX_S), asking as answer:
                answer.raise_for_status()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NotConnectedError(
                f"cannot connect to {self._client.endpoint}: {cause_of(error)}"
            ) from error


def foreign(request: web.BaseRequest) -> str | None:
    """Why a request is not from this machine's own programs: another site's page, or a name that is not local."""
    host = request.headers.get("Host", "")
    if not _LOCAL_HOST_RE.fullmatch(host):
        return "its Host is not local"
    origin = request.headers.get("Origin")
    if origin is not None and not _LOCAL_ORIGIN_RE.fullmatch(origin):
        return "its Origin is not local"
    if request.headers.get("Sec-Fetch-Site", "none") == "cross-site":
        return "another site's page asked for it"
    return None


def cause_of(error: Exception) -> str:
    """What kept us from an answer, without the library's objects in it."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return said or "it did not answer in time"


async def _relay(request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_passed(answer.headers, _RESPONSE_DROPS)
    )
    if answer.content_length is not None:
        response.content_length = answer.content_length
    await response.prepare(request)
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


def _passed(headers: CIMultiDictProxy[str], drops: frozenset[str]) -> CIMultiDict[str]:
    """Headers without those of one connection, also those that `Connection` names."""
    given = CIMultiDict(headers)
    named = {word.strip().lower() for line in given.getall("Connection", []) for word in line.split(",")}
    kept = ((name, value) for name, value in given.items() if name.lower() not in drops | named)
    return CIMultiDict(kept)


def _refusal(http: int, code: int, message: str) -> web.Response:
    body = json.dumps({"code": code, "message": message, "details": []}).encode()
    return web.Response(status=http, body=body, content_type="application/json")


@asynccontextmanager
async def listening(client: ClientFile, port: int) -> AsyncIterator[int]:
    """A proxy on loopback; its port."""
    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_MAX_S)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=timeout,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    ) as session:
        proxy = Proxy(client, session)
        await proxy.reach()
        # A server without routes: no path is strange to a proxy.
        server = web.Server(
            proxy.serve,
            handler_cancellation=True,
            access_log=None,
            logger=_quiet(),
            auto_decompress=False,
            # Wider than the factory's own: what is too long is refused there, as the contract says.
            max_line_size=PASSED_MAX_BYTES,
            max_field_size=PASSED_MAX_BYTES,
        )
        runner = web.ServerRunner(server, shutdown_timeout=DRAIN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, LOOPBACK, port).start()
        except OSError as error:
            raise CommandFailedError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}") from error
        try:
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()


def _quiet() -> logging.Logger:
    """Callers' mistakes are answered, not told to whoever started the proxy."""
    logger = logging.getLogger("hyperfactory.proxy")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


async def run(session: Session, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with listening(read_client_file(session.client_file), port) as bound:
        url = f"http://{LOOPBACK}:{bound}"
        session.out.line({"url": url}) if session.out.as_json else session.out.text(url)
        await stop.wait()
