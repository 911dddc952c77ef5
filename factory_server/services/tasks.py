"""Run a task: lock a member, carry the work to it, renew the lock while it works, and always give it back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.struct_pb2 import Struct
from google.rpc import code_pb2, status_pb2

from factory_server.core import model
from factory_server.core.errors import (
    FactoryError,
    FieldViolation,
    Invalid,
    NotFound,
    Refused,
    Unavailable,
)
from factory_server.core.lifecycle import AgentState
from factory_server.core.line import Line
from factory_server.services.doorbells import TASK_WORD
from factory_server.services.durations import seconds
from factory_server.services.hub import TASK
from factory_server.services.owned import spawn
from factory_server.services.parts import Parts
from factory_server.services.requests import key_of
from factory_server.services.sessions import Sessions
from factory_server.services.wake import COMING, wake_members
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2

log = logging.getLogger("factory.tasks")

INPUT_BYTES_MAX = 1024 * 1024
TIMEOUT_S = 300.0
LEASE_S = 15.0
RENEW_S = 5.0
SESSION_WITHIN_S = 5.0
"""An agent is READY a moment before its session is held; longer after a restart of this process."""
DEADLINE_SLACK_S = 1.0
"""So that the task's own timeout ends it, with its own words."""
PROGRESS_MAX = 1000
SAID_MAX_BYTES = 2 * 1024 * 1024
"""Of an answer on its way; what comes after it comes with the result."""
AT_LEAST = frozenset({"coder"})
"""What RunTask asks of its callers."""
CLOSE_RETRY_S = 0.5
LOOK_AGAIN_S = 0.5

Update = agent_service_pb2.AgentServiceRunTaskResponse


@dataclass(eq=False, slots=True)
class _Running:
    """A task in work here, and who listens."""

    updates: list[agent_service_pb2.TaskProgress] = field(default_factory=list)
    said: bytearray = field(default_factory=bytearray)
    """The answer so far, in UTF-8."""
    wake: asyncio.Condition = field(default_factory=asyncio.Condition)
    ended: bool = False
    limit: asyncio.Timeout | None = None
    """Ends the work; brought forward by whoever cancels it."""
    cancelled_by: str = ""


class _Call(NamedTuple):
    """What is asked of the agent."""

    request: agent_service_pb2.AgentServiceRunTaskRequest
    scopes: frozenset[str]
    deadline_s: float


class Tasks:
    """Tasks that this process carries. They are its own: a caller that leaves cancels nothing."""

    def __init__(self, parts: Parts, sessions: Sessions) -> None:
        self._parts = parts
        self._sessions = sessions
        self._running: dict[str, _Running] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own the tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.get_running_loop().create_future()

    async def start(
        self, request: crew_service_pb2.RunTaskRequest, actor: str, scopes: frozenset[str] = AT_LEAST
    ) -> tuple[model.TaskRow, bool]:
        """Lock a member and begin, with the tools that these scopes may use. Invalid, NotFound, Refused."""
        body = request.input.SerializeToString()
        if len(body) > INPUT_BYTES_MAX:
            text = f"is {len(body)} bytes, at most {INPUT_BYTES_MAX} are allowed"
            raise Invalid(
                f"cannot run task: input {text}", violations=[FieldViolation("input", text, "TOO_LARGE")]
            )
        crew = await self._parts.store.get_crew(request.crew)
        candidates = _candidates(crew, request)
        key = key_of(actor, "RunTask", request.request_id, request)
        timeout_s = seconds(request.timeout, TIMEOUT_S)
        task, joined = await self._assign(crew.id, candidates, key, actor, body, timeout_s)
        if not joined and self._group is not None:
            self._running[task.id] = _Running()
            spawn(self._group, self._carry(task, timeout_s, scopes), f"task {task.id}")
        return task, joined

    async def _assign(
        self,
        crew: str,
        candidates: Sequence[str],
        key: model.RequestKey,
        actor: str,
        body: bytes,
        timeout_s: float,
    ) -> tuple[model.TaskRow, bool]:
        """Lock the first member that is READY; where none is, wake one that hibernates and wait for it."""
        ends = time.monotonic() + timeout_s
        woken = ""
        with self._parts.hub.subscribe(crew) as rings:
            while True:
                try:
                    return await self._parts.store.open_task(
                        crew, candidates, key, actor, input=body, timeout_s=timeout_s, lease_s=LEASE_S
                    )
                except Refused:
                    members = [
                        a for a in (await self._parts.store.get_crew(crew)).agents if a.id in candidates
                    ]
                    ready = any(a.state is AgentState.READY and a.serves for a in members)
                    woken = woken if ready else await self._awaken(crew, members, woken)
                    if time.monotonic() >= ends or not (ready or woken):
                        raise
                if not ready:
                    await rings.wait(LOOK_AGAIN_S)

    async def _awaken(self, crew: str, candidates: Sequence[model.AgentRow], woken: str) -> str:
        """Whom to wait for: the one that was woken and comes, else the next one that hibernates; '' for none."""
        if any(a.id == woken and (a.thaw_wanted or a.state in COMING) for a in candidates):
            return woken
        asleep = [a for a in candidates if a.sleeps][:1]
        await wake_members(self._parts, crew, asleep, "Task")
        return asleep[0].id if asleep else ""

    async def updates(
        self, task: model.TaskRow
    ) -> AsyncGenerator[agent_service_pb2.TaskProgress | model.TaskRow, None]:
        """Progress as it comes (where the task is carried here), and last the task as it ended."""
        running = self._running.get(task.id)
        if running is not None:
            async for progress in _follow(running):
                yield progress
        while task.ended_at is None:
            with self._parts.hub.subscribe(task.crew) as rings:
                task = await self._parts.store.get_task(task.id)
                if task.ended_at is None:
                    await rings.wait(LOOK_AGAIN_S)
        yield task

    async def cancel(self, task: model.TaskRow, actor: str) -> model.TaskRow:
        """End a task that has not ended; the task as it ended, which may be by itself."""
        running = self._running.get(task.id)
        if running is None:
            return await self._cancel_elsewhere(task, actor)
        running.cancelled_by = actor
        _end_now(running)
        async for update in self.updates(task):
            if isinstance(update, model.TaskRow):
                return update
        raise AssertionError("unreachable: the last update is the task")

    async def _cancel_elsewhere(self, task: model.TaskRow, actor: str) -> model.TaskRow:
        """Another process carries it: it hears the ring, or learns it when it renews."""
        result = _failed(code_pb2.CANCELLED, f"cancelled by {actor}")
        ended = await self._parts.store.close_task(task.id, phase="FAILED", result=result.SerializeToString())
        try:
            await self._parts.bus.ring(f"{self._parts.owner} {TASK_WORD}{task.id}")
        except FactoryError as error:
            log.info("cannot ring for a cancelled task", extra={"task": task.id, "error": str(error)})
        return ended

    async def _carry(self, task: model.TaskRow, timeout_s: float, scopes: frozenset[str]) -> None:
        running = self._running[task.id]
        try:
            result = await self._work(task, running, timeout_s, scopes)
            await self._close(task, result)
        finally:
            async with running.wake:
                running.ended = True
                running.wake.notify_all()
            self._running.pop(task.id, None)

    async def _work(
        self, task: model.TaskRow, running: _Running, timeout_s: float, scopes: frozenset[str]
    ) -> agent_service_pb2.TaskResult:
        try:
            async with asyncio.timeout(timeout_s) as running.limit, asyncio.TaskGroup() as group:
                if running.cancelled_by:
                    _end_now(running)
                renewing = group.create_task(self._renew(task, running), name=f"renew {task.id}")
                try:
                    return await self._converse(task, running, timeout_s, scopes)
                finally:
                    renewing.cancel()
        except TimeoutError:
            if running.cancelled_by:
                return _failed(code_pb2.CANCELLED, f"cancelled by {running.cancelled_by}")
            return _failed(code_pb2.DEADLINE_EXCEEDED, f"no result within {timeout_s} s")
        finally:
            running.limit = None

    async def _converse(
        self, task: model.TaskRow, running: _Running, timeout_s: float, scopes: frozenset[str]
    ) -> agent_service_pb2.TaskResult:
        session = await self._sessions.find(task.agent, task.generation, within_s=SESSION_WITHIN_S)
        if session is None:
            return _failed(code_pb2.UNAVAILABLE, "the agent has no session")
        request = agent_service_pb2.AgentServiceRunTaskRequest(
            task=task.id, input=Struct.FromString(task.input), actor=task.actor
        )
        try:
            call = _Call(request, scopes, timeout_s + DEADLINE_SLACK_S)
            try:
                return await _run(session.line, call, running)
            except Unavailable as error:
                if error.reason != "DRAINING":
                    raise
            # It was about to hibernate. The task came first: nobody can send it to sleep while it is BUSY.
            await session.line.take_back(deadline_s=timeout_s)
            return await _run(session.line, call, running)
        except FactoryError as error:
            return _failed(code_pb2.UNAVAILABLE, f"the agent went away: {error}")

    async def _renew(self, task: model.TaskRow, running: _Running) -> None:
        """Keep the lock; end the work where another process ended the task, or the lock is another's."""
        with self._parts.hub.subscribe(f"{TASK}{task.id}") as rings:
            while True:
                await rings.wait(RENEW_S)
                try:
                    if not await self._parts.store.renew_task(task.id, lease_s=LEASE_S):
                        running.cancelled_by = running.cancelled_by or "whoever took its lock"
                        _end_now(running)
                        return
                except FactoryError as error:
                    log.warning("cannot renew", extra={"task": task.id, "error": str(error)})

    async def _close(self, task: model.TaskRow, result: agent_service_pb2.TaskResult) -> None:
        """End the task in the store, however long the store takes to answer."""
        phase = "COMPLETED" if result.status.code == code_pb2.OK else "FAILED"
        while True:
            try:
                await self._parts.store.close_task(task.id, phase=phase, result=result.SerializeToString())
            except NotFound:
                log.warning("a task ended that is unknown", extra={"task": task.id})
                return
            except FactoryError as error:
                self._parts.measures.trouble.labels("task").inc()
                log.warning("cannot close task", extra={"task": task.id, "error": str(error)})
                await asyncio.sleep(CLOSE_RETRY_S)
            else:
                return

    async def settle(self, crew: str) -> None:
        """End tasks whose carrier or agent is gone: their deadline or their lock is over."""
        open_tasks = await self._parts.store.open_tasks(crew)
        if not open_tasks:
            return
        agents = {a.id: a for a in (await self._parts.store.get_crew(crew)).agents}
        for task in open_tasks:
            agent = agents.get(task.agent)
            holds = (
                agent is not None
                and agent.state is AgentState.BUSY
                and agent.generation == task.generation
                and agent.lease_holder == f"task/{task.id}"
            )
            if task.id not in self._running and not holds:
                result = _failed(code_pb2.ABORTED, "the agent lost the task: its instance or its lock ended")
                await self._parts.store.close_task(task.id, phase="FAILED", result=result.SerializeToString())


def _end_now(running: _Running) -> None:
    if running.limit is not None:
        running.limit.reschedule(asyncio.get_running_loop().time())


async def _run(line: Line, call: _Call, running: _Running) -> agent_service_pb2.TaskResult:
    async for update in line.run_task(call.request, scopes=call.scopes, deadline_s=call.deadline_s):
        if update.HasField("result"):
            return update.result
        await _tell(running, update.progress)
    return _failed(code_pb2.INTERNAL, "the agent ended the stream without a result")


async def _follow(running: _Running) -> AsyncIterator[agent_service_pb2.TaskProgress]:
    """Steps as they come, and the answer from its beginning; what was said meanwhile comes in one piece."""
    seen = read_bytes = 0
    while True:
        async with running.wake:
            while not running.ended and len(running.updates) <= seen and len(running.said) <= read_bytes:
                await running.wake.wait()
            fresh, said = running.updates[seen:], bytes(running.said[read_bytes:])
            ended = running.ended
        if said:
            yield agent_service_pb2.TaskProgress(delta=said.decode())
        for progress in fresh:
            yield progress
        seen, read_bytes = seen + len(fresh), read_bytes + len(said)
        if ended and seen >= len(running.updates) and read_bytes >= len(running.said):
            return


async def _tell(running: _Running, progress: agent_service_pb2.TaskProgress) -> None:
    said = progress.delta.encode()
    async with running.wake:
        if said and len(running.said) + len(said) <= SAID_MAX_BYTES:
            running.said += said
        elif not said and len(running.updates) < PROGRESS_MAX:
            running.updates.append(progress)
        running.wake.notify_all()


def _failed(code: int, message: str) -> agent_service_pb2.TaskResult:
    return agent_service_pb2.TaskResult(status=status_pb2.Status(code=code, message=message))


def _candidates(crew: model.CrewRow, request: crew_service_pb2.RunTaskRequest) -> Sequence[str]:
    """Ids of members that may take the task. NotFound where the crew has none of that name."""
    live = [a for a in crew.agents if a.state is not AgentState.STOPPED]
    match request.WhichOneof("target"):
        case "agent":
            chosen = [a.id for a in live if request.agent in (a.id, a.name)]
        case "group":
            chosen = [a.id for a in live if a.group == request.group]
        case _:
            chosen = [a.id for a in live]
    if not chosen:
        wanted = request.agent or request.group or "any"
        raise NotFound(
            f"crew '{crew.name}' has no member '{wanted}'", resource_type="agent", resource_name=wanted
        )
    return chosen
