"""The proxy on its socket: strict, bounded, and connecting to the very address that it checked."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory_server.core import egress
from factory_server.core.errors import Unavailable
from factory_server.core.model import AuditRow
from factory_server.egress import EgressLimits, EgressProxy
from factory_server.egress.dial import is_own, unfit_by_default
from factory_server.egress.head import Denial, Request, parse_request
from hyperfactory.v1 import crew_service_pb2

CREW = "c1"
WITHIN_S = 10.0
SOON = EgressLimits(head_s=0.2, lookup_s=0.3, connect_s=0.5, idle_s=0.3)


Connected = tuple[str, bytes, asyncio.StreamReader, asyncio.StreamWriter]
"""Status line, the body of a refusal, streams."""


@dataclass
class Net:
    """The internet of a test: names lead to loopback addresses, of which 127.0.0.2 plays the public one."""

    directory: Path
    stack: AsyncExitStack
    names: dict[str, list[str]] = field(default_factory=lambda: {"good.example": ["127.0.0.2"]})
    lookups: list[str] = field(default_factory=list)
    rows: list[AuditRow] = field(default_factory=list)
    port: int = 0
    met: int = 0

    def resolve(self, host: str) -> Sequence[str]:
        self.lookups.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return self.names[host]

    @staticmethod
    def unfit(addresses: Sequence[str]) -> egress.Refusal | None:
        played = ["93.184.216.34" if address == "127.0.0.2" else address for address in addresses]
        return egress.unfit(played)

    async def record(self, row: AuditRow) -> None:
        self.rows.append(row)

    async def proxy(self, limits: EgressLimits | None = None, *hosts: str) -> EgressProxy:
        """A proxy that is open for CREW."""
        made = EgressProxy(self.directory, limits=limits, resolve=self.resolve, unfit=self.unfit)
        made.record = self.record
        await self.stack.enter_async_context(made)
        await made.open(CREW, self.network(*hosts))
        return made

    def network(self, *hosts: str) -> crew_service_pb2.CrewNetwork:
        listed = hosts or (f"good.example:{self.port}", f"*.example:{self.port}")
        return crew_service_pb2.CrewNetwork(allow_egress=True, egress_hosts=listed)

    async def serve(self, handle: Callable[..., Awaitable[None]]) -> None:
        """A server of the internet's."""

        async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.met += 1
            with suppress(ConnectionError):
                await handle(reader, writer)
            writer.close()

        server = await asyncio.start_server(met, "127.0.0.2", 0)
        self.stack.callback(server.close)
        self.port = server.sockets[0].getsockname()[1]

    async def dial(self, crew: str = CREW) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(self.directory / f"{crew}.sock"))
        self.stack.callback(writer.close)
        return reader, writer

    async def connect(self, host: str = "good.example", *, port: int = 0) -> Connected:
        """A request and what came of it."""
        reader, writer = await self.dial()
        target = f"{host}:{port or self.port}"
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        status, body = await answered(reader)
        return status, body, reader, writer

    async def audited(self, count: int = 1) -> list[AuditRow]:
        await until(lambda: len(self.rows) >= count)
        return self.rows


async def answered(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    async with asyncio.timeout(WITHIN_S):
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].decode()
        body = b"" if " 200 " in status else await reader.read()
        return status, body


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.005)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the end, orderly or not."""
    got = b""
    async with asyncio.timeout(WITHIN_S):
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                got += data
    return got


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        net = Net(directory, stack)
        await net.serve(echo)
        yield net


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    async with opened(tmp_path / "egress") as made:
        yield made


async def test_an_allowed_host_answers_and_one_line_says_so(net):
    await net.proxy()
    status, _, reader, writer = await net.connect()
    assert status == "HTTP/1.1 200 Connection established"
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    (row,) = await net.audited()
    assert (row.actor, row.method, row.resource, row.outcome) == (
        "crew/c1",
        "egress/CONNECT",
        f"good.example:{net.port}",
        "OK",
    )
    assert row.reason.startswith("sent=5 received=5 ")
    assert row.peer == f"pid {os.getpid()} uid {os.getuid()}"


async def test_bytes_that_come_with_the_request_are_not_lost(net):
    await net.proxy()
    reader, writer = await net.dial()
    writer.write(f"CONNECT good.example:{net.port} HTTP/1.0\r\n\r\nearly".encode())
    assert (await answered(reader))[0].endswith("200 Connection established")
    assert await reader.readexactly(5) == b"early"


REFUSED = {
    "evil.test": (403, "HOST_NOT_ALLOWED", "PERMISSION_DENIED"),
    "127.0.0.2": (403, "ADDRESS_LITERAL", "PERMISSION_DENIED"),
    "unknown.example": (502, "HOST_UNRESOLVED", "UNAVAILABLE"),
    "empty.example": (403, "HOST_UNRESOLVED", "PERMISSION_DENIED"),
    "loopback.example": (403, "ADDRESS_NOT_PUBLIC", "PERMISSION_DENIED"),
    "metadata.example": (403, "ADDRESS_NOT_PUBLIC", "PERMISSION_DENIED"),
    "mapped.example": (403, "ADDRESS_NOT_PUBLIC", "PERMISSION_DENIED"),
    "mixed.example": (403, "ADDRESS_NOT_PUBLIC", "PERMISSION_DENIED"),
}


@pytest.mark.parametrize("host", REFUSED)
async def test_all_else_is_refused_without_a_connection(net, host):
    net.names |= {
        "empty.example": [],
        "loopback.example": ["127.0.0.1"],
        "metadata.example": ["169.254.169.254"],
        "mapped.example": ["::ffff:127.0.0.2"],
        "mixed.example": ["127.0.0.2", "10.0.0.1"],
    }
    await net.proxy()
    status, body, _, _ = await net.connect(host)
    code, reason, outcome = REFUSED[host]
    assert status.startswith(f"HTTP/1.1 {code} ")
    assert body.decode().startswith(f"{reason}: ")
    (row,) = await net.audited()
    assert (row.resource, row.outcome, row.reason) == (f"{host}:{net.port}", outcome, reason)
    assert net.met == 0


async def test_the_second_answer_of_a_name_server_is_never_asked_for(net):
    """DNS rebinding: the name is looked up once, and what was checked is what is dialled."""
    answers = iter([["127.0.0.2"], ["127.0.0.1"]])
    net.resolve = lambda host: (net.lookups.append(host), next(answers))[1]
    await net.proxy()
    status, _, _, _ = await net.connect()
    assert " 200 " in status
    status, body, _, _ = await net.connect()
    assert " 403 " in status, "each connection is judged by its own answer"
    assert body.startswith(b"ADDRESS_NOT_PUBLIC")
    assert net.lookups == ["good.example"] * 2
    assert net.met == 1


async def test_an_address_that_is_dead_is_passed_over(net):
    net.names["good.example"] = ["127.0.0.2"]
    closed = socket.create_server(("127.0.0.2", 0))
    port = closed.getsockname()[1]
    closed.close()
    await net.proxy(None, "good.example", f"good.example:{port}")
    status, body, _, _ = await net.connect(port=port)
    assert " 502 " in status
    assert body.startswith(b"HOST_UNREACHABLE")


async def test_the_product_refuses_loopback_and_its_own_host(tmp_path, net):
    """As it is delivered, but for the names: no test asks a name server."""
    product = EgressProxy(tmp_path / "product", resolve=lambda _: ["127.0.0.1"])
    product.record = net.record
    async with product:
        path = await product.open("c2", crew_service_pb2.CrewNetwork(allow_egress=True))
        for target in ("loopback.example:80", "127.0.0.1:80", "localhost:443"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
            status, _ = await answered(reader)
            assert " 403 " in status
            writer.close()
    assert unfit_by_default(["127.0.0.1"]).reason == "ADDRESS_NOT_PUBLIC"
    assert unfit_by_default(["93.184.216.34"]) is None
    assert is_own("127.0.0.2")
    assert not is_own("93.184.216.34")
    assert not is_own("2606:4700::1111")


# Requests


BAD = {
    b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n": 405,
    b"POST / HTTP/1.1\r\n\r\n": 405,
    b"connect good.example:443 HTTP/1.1\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/2.0\r\n\r\n": 400,
    b"CONNECT good.example:443\r\n\r\n": 400,
    b"CONNECT  good.example:443 HTTP/1.1\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\nHost: x\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\nHost: x\n evil: y\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\nHost : x\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\n folded: x\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\nno colon\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\nX: \x00\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
    b"CONNECT \xff\xfe.example:443 HTTP/1.1\r\n\r\n": 400,
    b"CONNECT user@good.example:443 HTTP/1.1\r\n\r\n": 403,
    b"CONNECT http://good.example:443 HTTP/1.1\r\n\r\n": 403,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": 400,
    b"\x05\x01\x00\r\n\r\n": 400,
    b"\r\n\r\n": 400,
    b"CONNECT good.example:443 HTTP/1.1\r\n" + b"X: y\r\n" * 65 + b"\r\n": 431,
    b"CONNECT good.example:443 HTTP/1.1\r\nX: " + b"y" * 9000 + b"\r\n\r\n": 431,
    b"CONNECT good.example:443 HTTP/1.1\r\nX: " + b"y" * 300_000: 431,
}


@pytest.mark.parametrize("request_", BAD, ids=range(len(BAD)))
async def test_a_bad_request_is_told_what_it_is(net, request_):
    await net.proxy(EgressLimits(), "good.example")
    reader, writer = await net.dial()
    writer.write(request_)
    status, body = await answered(reader)
    assert status.split()[1] == str(BAD[request_])
    assert b"good.example" not in body
    assert status.isascii()
    assert len(await net.audited()) == 1
    assert net.met == 0


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_no_bytes_make_the_parser_fail_otherwise(line, more):
    for head in (line, b"CONNECT " + line + b" HTTP/1.1\r\n" + more, b"CONNECT a.b:443 HTTP/1.1\r\n" + more):
        try:
            found = parse_request(head + b"\r\n\r\n")
        except Denial as denial:
            assert denial.outcome
        else:
            assert isinstance(found, Request)
            assert not set(found.authority) & set("\r\n\0 ")


# Limits


async def test_a_slow_request_is_ended(net):
    await net.proxy(SOON)
    reader, writer = await net.dial()
    writer.write(b"CONNECT good.exa")
    status, _ = await answered(reader)
    assert " 408 " in status
    (row,) = await net.audited()
    assert (row.outcome, row.reason) == ("DEADLINE_EXCEEDED", "REQUEST_TIMEOUT")


async def test_a_client_that_leaves_early_leaves_no_trace_of_a_fault(net):
    await net.proxy()
    _, writer = await net.dial()
    writer.write(b"CONNECT ")
    writer.close()
    status, _, _, _ = await net.connect()
    assert " 200 " in status


async def test_a_name_server_that_hangs_holds_nobody_else_up(net):
    release = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = net.resolve

    def slow(host: str) -> Sequence[str]:
        if host == "slow.example":
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return real(host)

    net.resolve = slow
    proxy = await net.proxy(SOON)
    try:
        status, body, _, _ = await net.connect("slow.example")
        assert " 504 " in status
        assert body.startswith(b"HOST_UNRESOLVED")
        assert " 200 " in (await net.connect())[0]
        for _ in range(SOON.crew_lookups):
            assert " 504 " in (await net.connect("slow.example"))[0]
        # Answered, but not over: until they end, this crew's lookups hold their places, and no other's.
        assert " 504 " in (await net.connect())[0]
        await proxy.open("c2", net.network())
        reader, writer = await net.dial("c2")
        writer.write(f"CONNECT good.example:{net.port} HTTP/1.1\r\n\r\n".encode())
        assert " 200 " in (await answered(reader))[0]
    finally:
        release.set()
    await until(lambda: net.lookups.count("slow.example") >= SOON.crew_lookups)
    assert " 200 " in (await net.connect())[0]


async def test_an_idle_connection_is_cut_on_both_sides(net):
    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    await net.serve(silent)
    await net.proxy(SOON)
    status, _, reader, _ = await net.connect()
    assert " 200 " in status
    await ended(reader)
    async with asyncio.timeout(WITHIN_S):
        await gone.wait()
    (row,) = await net.audited()
    assert row.reason.endswith("cut=IDLE")


async def test_traffic_keeps_a_connection_longer_than_the_idle_time(net):
    await net.proxy(SOON)
    _, _, reader, writer = await net.connect()
    loop = asyncio.get_running_loop()
    until_s = loop.time() + 3 * SOON.idle_s
    while loop.time() < until_s:
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await asyncio.sleep(SOON.idle_s / 10)


async def test_a_life_is_bounded_however_busy(net):
    await net.proxy(EgressLimits(life_s=0.3))
    _, _, reader, writer = await net.connect()
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            writer.write(b"x")
            await reader.readexactly(1)
    (row,) = await net.audited()
    assert row.reason.endswith("cut=TOO_LONG")


async def test_the_bytes_of_one_connection_are_bounded(net):
    await net.proxy(EgressLimits(connection_bytes=100_000))
    _, _, reader, writer = await net.connect()
    writer.write(b"x" * 200_000)
    assert len(await ended(reader)) < 100_000
    (row,) = await net.audited()
    assert row.reason.endswith("cut=CONNECTION_BYTES_SPENT")


async def test_the_bytes_of_a_crew_are_bounded(net):
    proxy = await net.proxy(EgressLimits(crew_bytes=50_000))
    _, _, reader, writer = await net.connect()
    writer.write(b"x" * 25_000)
    await reader.readexactly(25_000)
    status, body, _, _ = await net.connect()
    assert " 429 " in status
    assert body.startswith(b"CREW_BYTES_SPENT")
    await proxy.open("c2", net.network())
    reader, writer = await net.dial("c2")
    writer.write(f"CONNECT good.example:{net.port} HTTP/1.1\r\n\r\n".encode())
    assert " 200 " in (await answered(reader))[0], "another crew has its own budget"


@pytest.mark.parametrize("limits", [EgressLimits(crew_connections=2), EgressLimits(all_connections=2)])
async def test_who_finds_no_place_waits_until_one_is_free(net, limits):
    await net.proxy(limits)
    held = [await net.connect() for _ in range(2)]
    third = asyncio.ensure_future(net.connect())  # noqa: TID251 - awaited below
    done, _ = await asyncio.wait([third], timeout=0.2)
    assert not done
    held[0][3].close()
    async with asyncio.timeout(WITHIN_S):
        assert " 200 " in (await third)[0]


async def test_one_crew_does_not_take_anothers_places(net):
    proxy = await net.proxy(EgressLimits(crew_connections=1))
    await net.connect()
    await proxy.open("c2", net.network())
    reader, writer = await net.dial("c2")
    writer.write(f"CONNECT good.example:{net.port} HTTP/1.1\r\n\r\n".encode())
    assert " 200 " in (await answered(reader))[0]


# Tunnels


@pytest.mark.parametrize("loop_", ["asyncio", "uvloop"])
def test_large_bodies_pass_unchanged_and_half_closed(tmp_path, loop_):
    """One side has said all, the other still answers: on the loop that the product runs, too."""

    async def whole() -> None:
        async with opened(tmp_path / "egress") as net:

            async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                got = await reader.read()
                writer.write(got[::-1])
                await writer.drain()

            await net.serve(answer_at_the_end)
            await net.proxy()
            _, _, reader, writer = await net.connect()
            data = os.urandom(3_000_000)
            writer.write(data)
            writer.write_eof()
            assert await ended(reader) == data[::-1]
            (row,) = await net.audited()
            assert row.reason.startswith("sent=3000000 received=3000000 ")
            assert "cut" not in row.reason

    if loop_ == "uvloop":
        import uvloop

        uvloop.run(whole())
    else:
        asyncio.run(whole())


async def test_a_server_that_breaks_off_is_not_taken_for_one_that_ended(net):
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()

    await net.serve(reset)
    await net.proxy()
    _, _, reader, writer = await net.connect()
    writer.write(b"x")
    await ended(reader)
    (row,) = await net.audited()
    assert row.reason.endswith("cut=BROKEN")


# Life of a socket


async def test_opening_again_keeps_the_socket_and_changes_the_rules(net):
    proxy = await net.proxy()
    path = net.directory / f"{CREW}.sock"
    before = path.stat().st_ino
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert stat.S_IMODE(net.directory.stat().st_mode) == 0o700
    await proxy.open(CREW, net.network("other.example"))
    assert path.stat().st_ino == before
    assert " 403 " in (await net.connect())[0]


async def test_closing_ends_connections_and_removes_the_socket(net):
    proxy = await net.proxy()
    _, _, reader, _ = await net.connect()
    await proxy.close(CREW)
    await ended(reader)
    assert await proxy.list_crews() == []
    assert list(net.directory.iterdir()) == []
    (row,) = await net.audited()
    assert row.reason.endswith("cut=CLOSED")
    await proxy.close(CREW)
    await proxy.open(CREW, net.network())
    assert " 200 " in (await net.connect())[0]


async def test_a_socket_of_a_process_that_was_killed_is_replaced_or_swept(net):
    net.directory.mkdir()
    for crew in (CREW, "c9"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(net.directory / f"{crew}.sock"))
    proxy = await net.proxy()
    assert " 200 " in (await net.connect())[0]
    assert await proxy.list_crews() == [CREW, "c9"]
    await proxy.close("c9")
    assert await proxy.list_crews() == [CREW]


async def test_what_another_factory_has_taken_over_is_left_to_it(net):
    first = await net.proxy()
    second = await net.proxy()
    await first.close(CREW)
    assert await second.list_crews() == [CREW]
    assert " 200 " in (await net.connect())[0]


async def test_after_the_end_nothing_opens(net):
    proxy = await net.proxy()
    await proxy.shut()
    assert list(net.directory.iterdir()) == []
    with pytest.raises(Unavailable):
        await proxy.open(CREW, net.network())
