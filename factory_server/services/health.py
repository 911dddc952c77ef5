"""Take the watchdog's reports: keep heartbeats, carry out verdicts, ignore what is about older generations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC

from factory_server.core import model
from factory_server.core.errors import NotFound
from factory_server.services.keeper import LOST_FROM
from factory_server.services.parts import Parts
from factory_server.services.reconciler import Reconciler
from hyperfactory.v1 import factory_service_pb2

log = logging.getLogger("factory.health")

ACTOR = "watchdog"


async def report(
    parts: Parts, reconciler: Reconciler, reports: Sequence[factory_service_pb2.AgentHealth]
) -> tuple[int, int]:
    """(condemned now, stale reports)."""
    facts = [
        model.HealthFact(
            r.agent,
            r.generation,
            r.misses,
            r.last_seen.ToDatetime(UTC) if r.HasField("last_seen") else None,
        )
        for r in reports
    ]
    stale = await parts.store.record_health(facts)
    parts.measures.misses.inc(sum(1 for r in reports if r.misses))
    condemned = 0
    for r in reports:
        if r.verdict == factory_service_pb2.HEALTH_VERDICT_DEAD:
            condemned += await _condemn(parts, reconciler, r)
    return condemned, stale


async def _condemn(parts: Parts, reconciler: Reconciler, verdict: factory_service_pb2.AgentHealth) -> int:
    try:
        agent = await parts.store.get_agent(verdict.agent)
    except NotFound:
        return 0
    if agent.generation != verdict.generation or agent.state not in LOST_FROM:
        return 0
    if agent.frozen_at is not None:  # its silence is wished
        return 0
    parts.measures.condemned.inc()
    log.warning(
        "condemned",
        extra={
            "action": "condemned",
            "agent": agent.id,
            "generation": agent.generation,
            "evidence": verdict.evidence,
        },
    )
    message = f"silent for {verdict.misses} intervals: {verdict.evidence}"
    await reconciler.condemn(agent, "Silent", message, ACTOR)
    return 1
