"""What the gateway tells about itself: Prometheus figures and the list of what is routed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from gateway.web import Page, Pages

if TYPE_CHECKING:
    from gateway.service import Gateway

PREFIX = "hyperfactory_gateway"


class _Figures(Collector):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Any]:
        gateway = self._gateway
        relay, traffic = gateway.relay.gauges, gateway.relay.gauges.traffic
        age_s = registry_age_s(gateway)
        yield _gauge(
            "routes", "Agents that a name leads to.", sum(a.serving for a in gateway.registry.agents())
        )
        yield _gauge("agents", "Agents known.", len(gateway.registry))
        yield _gauge(
            "registry_current",
            "1 while the registry is followed, 0 while it may be stale.",
            float(gateway.registry.current),
        )
        yield _gauge(
            "registry_age_seconds",
            "Since the factory last said something.",
            float("inf") if age_s is None else age_s,
        )
        yield _gauge(
            "document_applied",
            "1 when Traefik has the newest document.",
            float(gateway.publisher.applied == gateway.publisher.published != ""),
        )
        yield _gauge("relayed_connections", "Connections being relayed.", traffic.connections)
        yield _gauge("opening_connections", "Connections not led anywhere yet.", relay.opening)
        yield _gauge("parked_connections", "Connections that wait for their agent.", relay.parked)
        yield _counter("park_timeouts", "Connections that waited in vain.", relay.park_timeouts)
        yield _counter("refused_connections", "Connections over the limit.", traffic.refused)
        yield _counter(
            "fenced_connections",
            "Connections cut because their instance was not the live one, or idle.",
            traffic.cut,
        )
        yield _counter(
            "answered_connections", "Connections answered with an error.", gateway.activator.answered
        )
        yield _counter("received_bytes", "From clients.", traffic.bytes_in)
        yield _counter("sent_bytes", "To clients.", traffic.bytes_out)
        yield _counter(
            "traefik_restarts", "Ends of Traefik that were not asked for.", gateway.traefik.restarts
        )
        yield _counter("registry_reconnects", "Ends of the watch.", gateway.factory.reconnects)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)


def registry_age_s(gateway: Gateway) -> float | None:
    heard_at_s = gateway.factory.heard_at_s
    return None if heard_at_s is None else time.monotonic() - heard_at_s


def pages(find: Callable[[], Gateway | None]) -> Pages:
    """The operators' pages; `find` gives None until the gateway has an identity."""

    def metrics() -> Page:
        gateway = find()
        if gateway is None:
            return Page(503, b"no identity yet\n")
        figures = CollectorRegistry()
        figures.register(_Figures(gateway))
        return Page(200, generate_latest(figures), CONTENT_TYPE_LATEST)

    def readyz() -> Page:
        gateway = find()
        ready = gateway is not None and gateway.ready
        return Page(200, b"ready\n") if ready else Page(503, b"not ready\n")

    def routes() -> Page:
        gateway = find()
        body = {} if gateway is None else _routes(gateway)
        return Page(200, json.dumps(body).encode(), "application/json")

    return {"/metrics": metrics, "/readyz": readyz, "/routes": routes}


def _routes(gateway: Gateway) -> dict[str, Any]:
    agents = [
        {
            "authority": route.authority,
            "agent": route.agent,
            "crew": route.crew,
            "state": route.state_name,
            "generation": route.generation,
            "serving": route.serving,
        }
        for route in gateway.registry.agents()
    ]
    return {
        "registry": {"current": gateway.registry.current, "age_s": registry_age_s(gateway)},
        "document": {"published": gateway.publisher.published, "applied": gateway.publisher.applied},
        "traefik": {"pid": gateway.traefik.pid, "restarts": gateway.traefik.restarts},
        "agents": agents,
        "groups": {group: sorted(names) for group, names in gateway.publisher.applied_groups.items()},
    }
