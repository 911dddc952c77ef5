"""Numbers for Prometheus: helpers for registries, and the `/metrics` and `/readyz` endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

REQUEST_MAX_S: Final = 5.0
REQUEST_MAX_BYTES: Final = 8192
LATENCY_BUCKETS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class RpcMetrics:
    """Calls by method and code, with their time; fits the guard's `metrics`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._calls = Counter(
            "hyperfactory_rpc_calls_total", "Calls served.", ("method", "code"), registry=registry
        )
        self._seconds = Histogram(
            "hyperfactory_rpc_seconds",
            "Time from the request to the last answer.",
            ("method",),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        # labels() costs several microseconds: keep what it returns. Bounded by methods and codes.
        self._counters: dict[tuple[str, str], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def observe(self, method: str, code: str, seconds: float) -> None:
        counter = self._counters.get((method, code))
        if counter is None:
            counter = self._counters[method, code] = self._calls.labels(method, code)
        counter.inc()
        histogram = self._histograms.get(method)
        if histogram is None:
            histogram = self._histograms[method] = self._seconds.labels(method)
        histogram.observe(seconds)


async def serve_metrics(
    address: str, ready: Callable[[], bool], *, registry: CollectorRegistry = REGISTRY
) -> asyncio.Server:
    """Listen on `host:port` (port 0: any) until the server is closed: `async with await serve_metrics(...)`."""
    host, _, port = address.rpartition(":")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_MAX_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(head, ready, registry))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # no request, or nobody to answer: nothing to tell
        finally:
            writer.close()

    return await asyncio.start_server(answer, host.strip("[]"), int(port), limit=REQUEST_MAX_BYTES)


def bound_port(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def _response(head: bytes, ready: Callable[[], bool], registry: CollectorRegistry) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    if method != b"GET":
        return _http(b"405 Method Not Allowed", b"only GET\n")
    if path == b"/metrics":
        return _http(b"200 OK", generate_latest(registry), CONTENT_TYPE_LATEST.encode())
    if path == b"/readyz":
        return _http(b"200 OK", b"ready\n") if ready() else _http(b"503 Service Unavailable", b"not ready\n")
    return _http(b"404 Not Found", b"/metrics or /readyz\n")


def _http(status: bytes, body: bytes, kind: bytes = b"text/plain; charset=utf-8") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (status, kind, len(body)) + body
