"""Count and time what the factory does; labels come only from enums."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0)


class Measures:
    """The factory's metrics. Give each its own registry where several live in one process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.steps = Counter("hf_steps_total", "Steps of agents", ["event"], registry=registry)
        self.lost_steps = Counter(
            "hf_steps_lost_total", "Steps that lost a race", ["event"], registry=registry
        )
        self.assemble_s = Histogram(
            "hf_assemble_seconds", "Request to READY of a crew", buckets=SECONDS, registry=registry
        )
        self.spawn_s = Histogram(
            "hf_spawn_seconds", "Intent to READY of an agent", ["path"], buckets=SECONDS, registry=registry
        )
        self.hibernate_s = Histogram(
            "hf_hibernate_seconds", "Suspend to stored state", buckets=SECONDS, registry=registry
        )
        self.wake_s = Histogram(
            "hf_wake_seconds", "Request to READY of a woken agent", buckets=SECONDS, registry=registry
        )
        self.replaced = Counter("hf_replacements_total", "Instances replaced", registry=registry)
        self.condemned = Counter(
            "hf_condemned_total", "Verdicts of the watchdog carried out", registry=registry
        )
        self.misses = Counter("hf_health_misses_total", "Health intervals missed", registry=registry)
        self.pool_ready = Gauge("hf_pool_ready", "Warm instances that wait", ["base"], registry=registry)
        self.pool_target = Gauge("hf_pool_target", "Warm instances wished", ["base"], registry=registry)
        self.claims = Counter("hf_claims_total", "Instances given to agents", ["path"], registry=registry)
        self.fanout_s = Histogram(
            "hf_fanout_lag_seconds",
            "Commit of an event to its write to a watcher",
            buckets=SECONDS,
            registry=registry,
        )
        self.broadcast_s = Histogram(
            "hf_broadcast_seconds", "Acceptance to last receipt", buckets=SECONDS, registry=registry
        )
        self.vector_index = Gauge(
            "hf_vector_index",
            "1 where the bus's server has vector sets, and they are used",
            registry=registry,
        )
        self.vector_searches = Counter(
            "hf_vector_searches_total", "Searches, by what named the candidates", ["by"], registry=registry
        )
        self.trouble = Counter(
            "hf_trouble_total", "Errors that a loop survived", ["where"], registry=registry
        )
        self.swept = Counter(
            "hf_swept_total", "Things destroyed because nobody owned them", ["kind"], registry=registry
        )
