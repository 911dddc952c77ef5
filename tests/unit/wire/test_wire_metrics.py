"""The metrics endpoint answers scrapes and readiness over plain HTTP, and survives nonsense."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from wire.metrics import RpcMetrics, bound_port, serve_metrics

ANSWER_MAX_S = 5.0


async def ask(port: int, request: bytes) -> bytes:
    async with asyncio.timeout(ANSWER_MAX_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer


async def test_calls_are_exposed() -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    metrics.observe("/a.B/C", "OK", 0.002)
    metrics.observe("/a.B/C", "NOT_FOUND", 0.002)
    async with await serve_metrics("127.0.0.1:0", lambda: True, registry=registry) as server:
        answer = await ask(bound_port(server), b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'hyperfactory_rpc_calls_total{code="NOT_FOUND",method="/a.B/C"} 1.0' in answer
    assert b'hyperfactory_rpc_seconds_count{method="/a.B/C"} 2.0' in answer


async def test_readiness_follows_the_process() -> None:
    ready = False
    async with await serve_metrics("127.0.0.1:0", lambda: ready) as server:
        before = await ask(bound_port(server), b"GET /readyz HTTP/1.1\r\n\r\n")
        ready = True
        after = await ask(bound_port(server), b"GET /readyz?x=1 HTTP/1.1\r\n\r\n")
    assert before.startswith(b"HTTP/1.1 503")
    assert after.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405"),
        (b"GET /secret HTTP/1.1\r\n\r\n", b"HTTP/1.1 404"),
        (b"\x00\xff\r\n\r\n", b"HTTP/1.1 405"),
        (b"GET /metrics HTTP/1.1\r\n", b""),
        (b"x" * 20_000, b""),
    ],
)
async def test_nonsense_gets_a_short_answer_or_none(request_bytes: bytes, answer: bytes) -> None:
    async with await serve_metrics("127.0.0.1:0", lambda: True) as server:
        port = bound_port(server)
        try:
            got = await ask(port, request_bytes)
        except ConnectionError:
            got = b""
        assert got.startswith(answer)
        assert (await ask(port, b"GET /readyz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")
