"""The HTTP listener: renewed certificates, callers as they are proven, cancellation, drain, what is cut off."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from factory_server.api.http import listener as listener_module
from factory_server.api.http.app import HttpFace, anybody
from factory_server.api.http.listener import Listener
from factory_server.identity.ca import CertificateAuthority
from factory_server.identity.mint import TokenMint
from wire.errors import Unavailable
from wire.guarded import AuditRecord
from wire.identity import Identity, operator_spiffe, part_spiffe, thumbprint
from wire.interceptors import GuardInterceptor
from wire.policy import PolicyTable, Principal, Resource, Row, current_caller
from wire.tokens import TokenVerifier

WITHIN_S = 20.0
AGENTS_OWN = Row("GET /crews/{crew}/own", frozenset({Principal.AGENT}), resource=Resource.OWN_CREW)
ADMINS = Row("GET /admins", frozenset({Principal.OPERATOR}), frozenset({"admin"}), audited=True)


@dataclass
class Place:
    """A listener, its authority, and what its handlers saw."""

    ca: CertificateAuthority
    mint: TokenMint
    directory: Path
    identity: Identity
    listener: Listener = field(init=False)
    audited: list[AuditRecord] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def renew(self) -> None:
        self.identity = self.ca.issue(part_spiffe("factory"), ["factory.svc"], ttl_s=60)

    def context(self, who: Identity | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.identity.ca_pem.decode())
        if who is not None:
            file = self.directory / "client.pem"
            file.write_bytes(who.key_pem + b"\n" + who.certificate_pem)
            context.load_cert_chain(file)
        return context

    def token(self, who: Identity, subject: str, **claims: object) -> dict[str, str]:
        token = self.mint.mint(
            subject, thumbprint=thumbprint(who.certificate_pem), scopes=["admin"], ttl_s=60, **claims
        )
        return {"authorization": f"Bearer {token}"}

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.listener.port}{path}"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    ca = CertificateAuthority.open(tmp_path / "ca")
    first = ca.issue(part_spiffe("factory"), ["factory.svc"], ttl_s=60)
    made = Place(ca, TokenMint.open(tmp_path / "tokens"), tmp_path, first)

    async def audit(record: AuditRecord) -> None:
        made.audited.append(record)

    async def who(_request: web.Request) -> web.Response:
        return web.json_response({"spiffe": current_caller().spiffe, "agent": current_caller().agent})

    async def wait(_request: web.Request) -> web.Response:
        made.waiting.set()
        try:
            await made.release.wait()
        except asyncio.CancelledError:
            made.cancelled.set()
            raise
        return web.Response(text="done")

    async def fail(_request: web.Request) -> web.Response:
        raise Unavailable("a part is away")

    async def break_(_request: web.Request) -> web.Response:
        raise RuntimeError("the secret is a marzipan")

    guard = GuardInterceptor(PolicyTable({}), TokenVerifier(made.mint.jwks), audit=audit)
    face = HttpFace(guard.guards, asyncio.Event())
    face.add("GET", "/admins", who, ADMINS)
    face.add("GET", "/crews/{crew}/own", who, AGENTS_OWN)
    for path, handler in (("/who", who), ("/wait", wait), ("/fail", fail), ("/break", break_)):
        face.add("GET", path, handler, anybody(path))
    made.listener = Listener(face, lambda: made.identity, "127.0.0.1:0")
    await made.listener.start()
    yield made
    await made.listener.stop(0.1)


def operator(place: Place) -> Identity:
    return place.ca.issue(operator_spiffe("ann"), [], ttl_s=60)


@pytest.fixture
async def http(place: Place) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=place.context(operator(place)))
    timeout = aiohttp.ClientTimeout(total=WITHIN_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def get(place: Place, http: aiohttp.ClientSession, path: str, **more: object) -> tuple[int, dict]:
    async with http.get(place.url(path), server_hostname="factory.svc", **more) as answer:
        return answer.status, await answer.json()


async def shown(place: Place) -> str:
    """The digest of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection(
        "127.0.0.1", place.listener.port, ssl=place.context(operator(place)), server_hostname="factory.svc"
    )
    try:
        return hashlib.sha256(writer.get_extra_info("ssl_object").getpeercert(binary_form=True)).hexdigest()
    finally:
        writer.close()


async def test_new_connections_are_shown_the_renewed_certificate_and_old_ones_live_on(place, http):
    assert (await get(place, http, "/who"))[0] == 200
    before = await shown(place)
    place.renew()
    assert await shown(place) != before
    assert (await get(place, http, "/who"))[0] == 200


async def test_the_caller_is_who_the_certificate_and_the_token_say(place, http):
    ann = operator(place)
    connector = aiohttp.TCPConnector(ssl=place.context(ann))
    async with aiohttp.ClientSession(connector=connector) as own:
        token = place.token(ann, operator_spiffe("ann"))
        assert await get(place, own, "/admins", headers=token) == (
            200,
            {"spiffe": operator_spiffe("ann"), "agent": ""},
        )
        assert (await get(place, own, "/admins"))[0] == 401
    # The same token with another certificate of the same operator.
    status, told = await get(place, http, "/admins", headers=token)
    assert (status, told["details"][0]["reason"]) == (401, "TOKEN_INVALID")
    assert [record.code for record in place.audited] == ["OK", "UNAUTHENTICATED", "UNAUTHENTICATED"]


async def test_an_agent_reaches_its_own_crew_only(place):
    agent = place.ca.issue_agent("c1", "coder", 3)
    subject = "spiffe://hyperfactory.local/crew/c1/agent/coder"
    headers = place.token(agent, subject, crew="c1", agent="coder", generation=3)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=place.context(agent))) as own:
        assert (await get(place, own, "/crews/c1/own", headers=headers))[1]["agent"] == "coder"
        assert (await get(place, own, "/crews/c2/own", headers=headers))[0] == 403
        assert (await get(place, own, "/admins", headers=headers))[0] == 403


async def test_a_client_that_hangs_up_cancels_its_request(place, http):
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(get(place, http, "/wait"))
        await asyncio.wait_for(place.waiting.wait(), WITHIN_S)
        asking.cancel()
    await asyncio.wait_for(place.cancelled.wait(), WITHIN_S)


async def test_a_drain_lets_requests_in_flight_finish_and_takes_no_new_ones(place, http):
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(http.get(place.url("/wait"), server_hostname="factory.svc"))
        await asyncio.wait_for(place.waiting.wait(), WITHIN_S)
        port = place.listener.port
        stopping = group.create_task(place.listener.stop(WITHIN_S))
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionError:
                    break
                writer.close()
                await asyncio.sleep(0.01)
        place.release.set()
        assert (await asking).status == 200
        await stopping


async def test_failures_are_statuses_and_tell_no_secrets(place, http):
    async with http.get(place.url("/fail"), server_hostname="factory.svc") as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert (await answer.json())["message"] == "a part is away"
    status, told = await get(place, http, "/break")
    assert status == 500
    assert "marzipan" not in str(told)


async def test_ids_of_requests_are_taken_over_or_made(place, http):
    for given, kept in (("abc-1", True), ("a b", False), ("x" * 65, False)):
        headers = {"X-Request-Id": given}
        async with http.get(place.url("/who"), server_hostname="factory.svc", headers=headers) as answer:
            assert (answer.headers["X-Request-Id"] == given) is kept


async def test_a_client_without_a_certificate_gets_nothing(place):
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=place.context())) as bare:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await get(place, bare, "/who")


async def test_connections_beyond_the_limit_are_closed(place, monkeypatch):
    monkeypatch.setattr(listener_module, "CONNECTIONS_MAX", 2)
    context, writers = place.context(operator(place)), []
    try:
        for _ in range(2):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", place.listener.port, ssl=context, server_hostname="factory.svc"
            )
            writers.append(writer)
            # Answered: so it is counted before the next one comes.
            writer.write(b"GET /who HTTP/1.1\r\nHost: factory.svc\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        with pytest.raises((ConnectionError, ssl.SSLError)):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", place.listener.port, ssl=context, server_hostname="factory.svc"
            )
            writers.append(writer)
            assert await reader.read() == b""
            raise ConnectionError("closed")
    finally:
        for writer in writers:
            writer.close()


async def test_a_connection_that_says_nothing_whole_is_cut_off(place, monkeypatch):
    monkeypatch.setattr(listener_module, "KEEPALIVE_S", 0.2)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", place.listener.port, ssl=place.context(operator(place)), server_hostname="factory.svc"
    )
    writer.write(b"GET /who HTTP/1.1\r\nHost: fac")
    async with asyncio.timeout(WITHIN_S):
        assert await reader.read() == b""
    writer.close()
