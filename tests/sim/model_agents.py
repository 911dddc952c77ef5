"""Agents without code: they answer their line as the runtime does, in this process and at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from factory_server.core.errors import Refused, Unavailable
from factory_server.drivers.fake import FakeHost, FakeInstance
from factory_server.drivers.namespaces.records import stem
from hyperfactory.v1 import agent_service_pb2, events_pb2

TASK_TAKES_S = 0.05


@dataclass(eq=False)
class Mind:
    """What one instance has become and holds."""

    assumed: tuple[str, int] | None = None
    session: int = 0
    known: list[str] = field(default_factory=list)
    """Broadcasts that were handled, in order."""
    outbox: list[agent_service_pb2.SignalReceipt] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class ModelAgents:
    """All agents of one host."""

    def __init__(self) -> None:
        self.host: FakeHost | None = None
        self.minds: dict[FakeInstance, Mind] = {}

    def open_line(self, control: str) -> ModelLine:
        """A line to whatever instance has this control socket."""
        return ModelLine(self, Path(control).stem)

    def find(self, name: str) -> tuple[FakeInstance, Mind]:
        """The living instance whose socket is so called. Unavailable."""
        assert self.host is not None
        for instance in self.host.instances.values():
            if stem(instance.spec.instance) == name and instance.end is None:
                return instance, self.minds.setdefault(instance, Mind())
        raise Unavailable(f"nobody listens at {name}")


class ModelLine:
    """`core.line.Line` to a model agent."""

    def __init__(self, agents: ModelAgents, name: str) -> None:
        self._agents = agents
        self._name = name
        self._session = 0
        self._closed = asyncio.Event()

    async def greet(self, *, deadline_s: float) -> None:
        """It answers."""
        self._agents.find(self._name)

    async def assume(
        self, request: agent_service_pb2.AssumeRequest, *, deadline_s: float
    ) -> agent_service_pb2.AssumeResponse:
        """Become this agent, once."""
        await asyncio.sleep(0)
        _, mind = self._agents.find(self._name)
        wished = (request.agent, request.generation)
        if mind.assumed not in (None, wished):
            raise Refused(f"the instance is {mind.assumed} already")
        mind.assumed = wished
        return agent_service_pb2.AssumeResponse()

    async def attend(self) -> AsyncIterator[agent_service_pb2.DeliverResponse]:
        """Receipts, until the instance ends or a newer session stands."""
        instance, mind = self._agents.find(self._name)
        mind.session += 1
        self._session = mind.session
        mind.news.set()
        yield agent_service_pb2.DeliverResponse(attached=True)
        while mind.session == self._session and instance.end is None and not self._closed.is_set():
            mind.news.clear()
            batch, mind.outbox = mind.outbox, []
            if batch:
                yield agent_service_pb2.DeliverResponse(receipts=batch)
            await _first(mind.news, instance.ended, self._closed)
        raise Unavailable("the session ended")

    async def send(self, item: agent_service_pb2.DeliverRequest) -> None:
        """Handle a signal once, answer each delivery."""
        await asyncio.sleep(0)
        _, mind = self._agents.find(self._name)
        if mind.session != self._session or self._closed.is_set():
            raise Unavailable("the session does not stand")
        if item.HasField("signal"):
            broadcast = item.signal.broadcast
            if broadcast not in mind.known:
                mind.known.append(broadcast)
            stage = events_pb2.RECEIPT_STAGE_ACKED
            mind.outbox.append(agent_service_pb2.SignalReceipt(broadcast=broadcast, stage=stage))
            mind.news.set()

    async def run_task(
        self,
        request: agent_service_pb2.AgentServiceRunTaskRequest,
        *,
        scopes: frozenset[str],
        deadline_s: float,
    ) -> AsyncIterator[agent_service_pb2.AgentServiceRunTaskResponse]:
        """Some progress and success."""
        instance, _ = self._agents.find(self._name)
        progress = agent_service_pb2.TaskProgress(message="begun")
        yield agent_service_pb2.AgentServiceRunTaskResponse(progress=progress)
        try:
            async with asyncio.timeout(TASK_TAKES_S):
                await _first(instance.ended, self._closed)
        except TimeoutError:
            yield agent_service_pb2.AgentServiceRunTaskResponse(result=agent_service_pb2.TaskResult())
            return
        raise Unavailable("the agent went away")

    async def drain(self, *, grace_s: float) -> None:
        """Nothing is in the way."""

    async def close(self) -> None:
        """Let go."""
        self._closed.set()


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
