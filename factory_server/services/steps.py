"""Join the steps of one crew into few transactions: while one commits, the next ones gather."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from factory_server.core import model, reconcile
from factory_server.core.errors import FactoryError, Unavailable
from factory_server.core.lifecycle import AgentEvent, AgentState
from factory_server.services.parts import ACTOR, Parts

log = logging.getLogger("factory.steps")

BATCH_MAX = 500
QUEUE_MAX = 10_000

Job = tuple[Sequence[model.Step], "asyncio.Future[Sequence[model.StepResult]]"]


class StepBatcher:
    """Group commit for one crew. `run` must be a task of the owner's."""

    def __init__(self, crew: str, parts: Parts, committed: Callable[[model.Stepped], None]) -> None:
        self._crew = crew
        self._parts = parts
        self._committed = committed
        self._queue: asyncio.Queue[Job] = asyncio.Queue(QUEUE_MAX)
        self._ended = False

    async def step(self, steps: Sequence[model.Step]) -> Sequence[model.StepResult]:
        """Carry the steps out, in order, in one transaction with whatever else waits; their results.
        Unavailable where nobody commits any more."""
        if self._ended:
            raise self._not_kept()
        done: asyncio.Future[Sequence[model.StepResult]] = asyncio.get_running_loop().create_future()
        await self._queue.put((steps, done))
        if self._ended:
            raise self._not_kept()
        return await done

    async def run(self) -> None:
        """Commit batch after batch, until cancelled; who still waits then is told so."""
        try:
            while True:
                batch = [await self._queue.get()]
                size = len(batch[0][0])
                while size < BATCH_MAX and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                    size += len(batch[-1][0])
                await self._commit(batch)
        finally:
            self._ended = True
            while not self._queue.empty():
                _fail([self._queue.get_nowait()], self._not_kept())

    async def _commit(self, batch: Sequence[Job]) -> None:
        try:
            stepped = await self._parts.store.step(self._crew, [s for steps, _ in batch for s in steps])
        except FactoryError as error:
            _fail(batch, error)
            return
        except asyncio.CancelledError:
            # Not cancelled themselves: those who wait belong to other tasks, which live on.
            _fail(batch, self._not_kept())
            raise
        narrate(self._parts, stepped)
        self._committed(stepped)
        results = iter(stepped.results)
        for steps, done in batch:
            mine = [next(results) for _ in steps]
            if not done.done():
                done.set_result(mine)
        # Who was rung by the commit itself may have looked too early; those who stepped go on first.
        self._parts.hub.ring(self._crew)

    def _not_kept(self) -> Unavailable:
        return Unavailable(f"crew '{self._crew}' is no longer kept here")


def _fail(batch: Sequence[Job], error: FactoryError) -> None:
    for _, done in batch:
        if not done.done():
            done.set_exception(error)


def narrate(parts: Parts, stepped: model.Stepped) -> None:
    """One log line and one count a step: the only place where steps are told."""
    for result in stepped.results:
        event = result.step.event.value
        if result.agent is None:
            parts.measures.lost_steps.labels(event).inc()
            continue
        parts.measures.steps.labels(event).inc()
        if result.step.event is AgentEvent.REPLACE:
            parts.measures.replaced.inc()
        log.info(
            "agent step",
            extra={
                "action": "agent_step",
                "event_name": event,
                "agent": result.agent.id,
                "agent_name": result.agent.name,
                "crew": result.agent.crew,
                "generation": result.agent.generation,
                "state": result.agent.state.value,
                "reason": result.step.reason,
                "actor": result.step.actor,
            },
        )


def simple_step(agent: model.AgentRow, event: AgentEvent, why: reconcile.Decision) -> model.Step:
    """The factory's own step from the state that the row shows."""
    return model.Step(
        agent.id, agent.generation, (agent.state,), event, ACTOR, reason=why.reason, message=why.message
    )


def replace_step(agent: model.AgentRow) -> model.Step:
    """UNHEALTHY → PROVISIONING with the next generation."""
    return model.Step(
        agent.id,
        agent.generation,
        (AgentState.UNHEALTHY,),
        AgentEvent.REPLACE,
        ACTOR,
        reason="Replaced",
        message=agent.message,
    )
