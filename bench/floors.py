"""Floors: what the same machine needs for the least that could do the job."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import psycopg

from bench.connection import Caller
from bench.stack import Stack, environment
from embedded.postgres import EmbeddedPostgres
from hyperfactory.v1 import factory_service_pb2 as fp
from hyperfactory.v1 import factory_service_pb2_grpc

CALL_WITHIN_S = 30.0
DATABASE = "bench"
EMPTY_METHOD = "/bench/Empty"
BARE_SERVER = """
import asyncio, sys, grpc
async def empty(request, context): return b""
async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(empty)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Empty": handler}),))
    server.add_insecure_port("unix://" + sys.argv[1])
    await server.start()
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    await asyncio.Event().wait()
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Floors:
    """An empty server with mTLS, and a connection to the same Postgres."""

    empty: factory_service_pb2_grpc.FactoryServiceAsyncStub
    connection: psycopg.AsyncConnection[tuple[object, ...]]
    database_url: str
    caller: Caller

    async def call_and_commit(self) -> float:
        """Milliseconds of an empty unary call and one synchronous commit."""
        since = time.perf_counter()
        await self.empty.GetAgent(
            fp.GetAgentRequest(agent="none"), timeout=CALL_WITHIN_S, metadata=self.caller.metadata
        )
        await self.connection.execute("INSERT INTO floor (at) VALUES (now())")
        return (time.perf_counter() - since) * 1000


@asynccontextmanager
async def open_floors(stack: Stack, caller: Caller) -> AsyncIterator[Floors]:
    """Start the empty server and make the bench's own database; end both."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.floor_server", str(stack.home / "pki" / "factory")),
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(CALL_WITHIN_S):
            port = int(await process.stdout.readline())
        url = EmbeddedPostgres(stack.home).url
        own = url.replace("/hyperfactory?", f"/{DATABASE}?")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        async with (
            await psycopg.AsyncConnection.connect(own, autocommit=True) as connection,
            caller.open(f"127.0.0.1:{port}", "factory.svc") as channel,
        ):
            await connection.execute("CREATE TABLE floor (at timestamptz)")
            stub: factory_service_pb2_grpc.FactoryServiceAsyncStub = (
                factory_service_pb2_grpc.FactoryServiceStub(channel)
            )
            yield Floors(stub, connection, own, caller)
    finally:
        process.terminate()
        await process.wait()


async def bare_start(count: int = 1) -> float:
    """Milliseconds from `python -c` to the answer of an empty call, of so many processes at once."""
    with tempfile.TemporaryDirectory(prefix="hfb", dir="/tmp") as directory:
        since = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            starts = [group.create_task(_bare(Path(directory) / f"{i}.sock")) for i in range(count)]
        took = (time.perf_counter() - since) * 1000
        for start in starts:
            start.result().kill()
            await start.result().wait()
        return took


async def _bare(socket: Path) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BARE_SERVER, str(socket)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    async with grpc.aio.insecure_channel(f"unix://{socket}") as channel:
        await channel.unary_unary(EMPTY_METHOD, bytes, bytes)(b"", timeout=CALL_WITHIN_S)
    return process
