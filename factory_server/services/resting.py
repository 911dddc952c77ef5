"""Lay agents to rest whose time is over; those whose instances were used are asked again when it may be."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration

from factory_server.core import model
from factory_server.core.errors import FactoryError
from factory_server.core.reconcile import Decision, Job
from factory_server.services.durations import seconds
from factory_server.services.parts import Parts

log = logging.getLogger("factory.resting")


class Resting:
    """What a keeper knows of instances that refused one kind of rest."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._used: dict[str, tuple[int, datetime]] = {}
        """Agents whose instances refused, in that generation: when to ask again."""

    def unless_used(self, agent: model.AgentRow, decision: Decision, *, attended: bool) -> Decision:
        """The decision, put off where the agent has no session or its instance was used."""
        if not attended:
            return Decision(Job.ATTEND)
        generation, due = self._used.get(agent.id, (0, None))
        if generation != agent.generation:
            return decision
        return Decision(decision.job, due, decision.reason, decision.message)

    async def lay(
        self, agent: model.AgentRow, idle: Duration, laying: Awaitable[model.AgentRow | None]
    ) -> None:
        """Await what lays the agent to rest, if it was `idle` for so long; where it was not, put it off."""
        left_s = seconds(idle)
        try:
            if await laying is not None:
                self._used.pop(agent.id, None)
                return
        except FactoryError as error:
            left_s -= float(error.metadata.get("idle_s", "0"))
            log.info("does not rest yet", extra={"agent": agent.id, "error": str(error)})
        self._used[agent.id] = (agent.generation, self._parts.now() + timedelta(seconds=max(left_s, 0.0)))
