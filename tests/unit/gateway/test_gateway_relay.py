"""The relay carries bytes faithfully: order, half-closes, backpressure and limits, over real sockets."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.opening import Opening
from gateway.pipe import BUFFER_MAX_BYTES, Traffic
from gateway.registry import Registry
from gateway.relay import Limits, Relay
from hyperfactory.v1 import types_pb2
from wire.errors import FactoryError

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NAME = "coder.crew-c1.svc"
WITHIN_S = 10.0
SENT_BYTES = 64 << 20


def hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


HELLO = hello()


class Refuser:
    """Notes what could not be led, and speaks for no name."""

    def __init__(self) -> None:
        self.errors: list[FactoryError] = []

    async def answer(self, client: Opening, authority: str, error: FactoryError) -> bool:
        self.errors.append(error)
        return False


class Bench:
    """A relay on a port of its own in front of one agent's socket."""

    def __init__(self, relay: Relay, registry: Registry, refuser: Refuser, port: int, path: Path) -> None:
        self.relay = relay
        self.registry = registry
        self.refuser = refuser
        self.port = port
        self.path = path

    def put(self, state: int = types_pb2.AGENT_STATE_READY) -> None:
        agent = types_pb2.Agent(
            id="a",
            uid="u",
            name="coder",
            crew="c1",
            state=types_pb2.AgentState.ValueType(state),
            generation=1,
            endpoint=types_pb2.Endpoint(direct=f"unix://{self.path}"),
        )
        self.registry.apply([agent])

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A client's connection that has said whom it wants."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(HELLO)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def bench(handler: Handler, limits: Limits | None = None) -> AsyncIterator[Bench]:
    registry, refuser = Registry(), Refuser()
    registry.begin()
    registry.complete()

    async def wake(_: object) -> bool:
        return False

    relay = Relay(
        registry,
        answerer=refuser,
        groups_at=lambda: ("127.0.0.1", 1),
        group_routed=lambda _: False,
        wake=wake,
        limits=limits or Limits(),
        traffic=Traffic(),
    )
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="hfrl") as home:
        path = Path(home) / "a.sock"
        agent = await asyncio.start_unix_server(handler, path)
        front = await loop.create_server(lambda: relay.accept(parking=True), "127.0.0.1", 0)
        async with asyncio.timeout(WITHIN_S * 2), asyncio.TaskGroup() as group:
            running = group.create_task(relay.run())
            made = Bench(relay, registry, refuser, front.sockets[0].getsockname()[1], path)
            made.put()
            try:
                yield made
            finally:
                front.close()
                agent.close()
                running.cancel()
                await agent.wait_closed()
                await until(lambda: relay.gauges.traffic.connections == relay.gauges.opening == 0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write(b"end")
    except ConnectionError:
        pass  # cut off: some tests want that
    finally:
        writer.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():
            await asyncio.sleep(0.002)


async def led(reader: asyncio.StreamReader) -> None:
    assert await reader.readexactly(len(HELLO)) == HELLO


async def closed(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionResetError):
        assert await reader.read() == b""


async def test_every_byte_arrives_in_order_and_a_half_close_passes_both_ways() -> None:
    payload = bytes(range(256)) * 40_000
    async with bench(echo) as stage:
        async with stage.dial() as (reader, writer):
            await led(reader)

            async def send() -> None:
                writer.write(payload)
                await writer.drain()
                writer.write_eof()

            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                received = group.create_task(reader.read())
        assert received.result() == payload + b"end"
        await until(lambda: stage.relay.gauges.traffic.connections == 0)
        assert stage.relay.gauges.traffic.bytes_in == len(HELLO) + len(payload)


async def test_reader_that_stands_still_stops_the_writer() -> None:
    release = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()  # the stream's own buffer fills, and then it stops reading
        writer.close()

    async with bench(deaf) as stage, stage.dial() as (_, writer):
        await until(lambda: stage.relay.gauges.traffic.connections == 1)
        writer.write(bytes(SENT_BYTES))
        await _stands_still(stage.relay.gauges.traffic)
        assert stage.relay.gauges.traffic.bytes_in < SENT_BYTES / 4
        writer.transport.abort()
        release.set()


async def _stands_still(traffic: Traffic) -> None:
    """Wait until many looks in a row have found the same count."""
    same, last = 0, -1
    async with asyncio.timeout(WITHIN_S):
        while same < 50:
            same = same + 1 if traffic.bytes_in == last else 0
            last = traffic.bytes_in
            await asyncio.sleep(0.002)


async def test_connection_over_the_limit_is_refused() -> None:
    async with bench(echo, Limits(connections=1)) as stage, stage.dial() as (first, _):
        await led(first)
        async with stage.dial() as (late, _):
            await closed(late)
        assert stage.relay.gauges.traffic.refused == 1


async def test_connection_that_is_no_tls_is_refused() -> None:
    async with bench(echo) as stage:
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await closed(reader)
        writer.close()


async def test_parked_client_may_not_send_without_end() -> None:
    async with bench(echo) as stage:
        stage.put(types_pb2.AGENT_STATE_UNHEALTHY)
        async with stage.dial() as (reader, writer):
            writer.write(bytes(BUFFER_MAX_BYTES))
            await closed(reader)


async def test_parked_client_that_leaves_is_forgotten() -> None:
    async with bench(echo) as stage:
        stage.put(types_pb2.AGENT_STATE_UNHEALTHY)
        async with stage.dial():
            await until(lambda: stage.relay.gauges.parked == 1)
        await until(lambda: stage.relay.gauges.parked == 0 and stage.relay.gauges.opening == 0)


async def test_more_parked_clients_than_allowed_are_turned_away() -> None:
    async with bench(echo, Limits(parked=1)) as stage:
        stage.put(types_pb2.AGENT_STATE_UNHEALTHY)
        async with stage.dial():
            await until(lambda: stage.relay.gauges.parked == 1)
            async with stage.dial() as (late, _):
                await closed(late)
            assert stage.relay.gauges.parked == 1


@pytest.mark.parametrize("state", [types_pb2.AGENT_STATE_STOPPED, types_pb2.AGENT_STATE_HIBERNATING])
async def test_agent_without_an_instance_is_cut_off(state: int) -> None:
    async with bench(echo) as stage, stage.dial() as (reader, _):
        await led(reader)
        stage.put(state)
        await closed(reader)
        assert stage.relay.gauges.traffic.cut == 1


async def test_name_that_nobody_has_is_answered_as_not_found() -> None:
    async with bench(echo) as stage:
        stage.put(types_pb2.AGENT_STATE_STOPPED)
        async with stage.dial():
            await until(lambda: bool(stage.refuser.errors))
        assert stage.refuser.errors[0].reason == "RESOURCE_NOT_FOUND"
