"""Know which instances exist: list and watch the factory's registry, and take it up again for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import structlog
from google.protobuf.duration_pb2 import Duration

from hyperfactory.v1.factory_service_pb2 import WatchAgentsRequest, WatchAgentsResponse
from hyperfactory.v1.types_pb2 import Agent, AgentState

if TYPE_CHECKING:
    from hyperfactory.v1.factory_service_pb2_grpc import FactoryServiceAsyncStub

BOOKMARK_S = 5
SILENCE_MAX_S = 3.0 * BOOKMARK_S
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0

log = structlog.get_logger("watchdog.registry")


@dataclass(frozen=True, slots=True)
class Change:
    """Agents as they are now, and ids of those that are gone."""

    present: Iterable[Agent]
    gone: Iterable[str]


@dataclass(slots=True)
class View:
    """The registry as the streams told it; an unfinished snapshot changes nothing."""

    agents: dict[str, Agent] = field(default_factory=dict)
    synced: bool = False
    _snapshot: dict[str, Agent] | None = None

    def begin(self) -> None:
        """A new stream: its snapshot will replace what is held."""
        self._snapshot = {}

    def feed(self, response: WatchAgentsResponse) -> Change:
        """Take in one response; what it changed."""
        if self._snapshot is None:
            return self._apply(response.agents)
        self._snapshot.update((agent.id, agent) for agent in response.agents)
        if not response.synced:
            return Change((), ())
        snapshot, self._snapshot, self.synced = self._snapshot, None, True
        lost = [agent for agent in self.agents if agent not in snapshot]
        for agent in lost:
            del self.agents[agent]
        change = self._apply(snapshot.values())
        return Change(change.present, [*lost, *change.gone])

    def _apply(self, agents: Iterable[Agent]) -> Change:
        present, gone = [], []
        for agent in agents:
            if agent.state == AgentState.AGENT_STATE_STOPPED:
                self.agents.pop(agent.id, None)
                gone.append(agent.id)
            else:
                self.agents[agent.id] = agent
                present.append(agent)
        return Change(present, gone)


async def follow(stub: FactoryServiceAsyncStub, view: View, changed: Callable[[Change], None]) -> None:
    """Keep `view` fresh for ever. While the factory is away, what was known stays known."""
    backoff_s = BACKOFF_MIN_S
    while True:
        was_served = await _stream(stub, view, changed)
        backoff_s = BACKOFF_MIN_S if was_served else min(backoff_s * 2, BACKOFF_MAX_S)
        await asyncio.sleep(backoff_s * random.uniform(0.5, 1))


async def _stream(stub: FactoryServiceAsyncStub, view: View, changed: Callable[[Change], None]) -> bool:
    """Read one stream to its end, however it ends; whether anything came."""
    view.begin()
    request = WatchAgentsRequest(bookmark_interval=Duration(seconds=BOOKMARK_S))
    call = stub.WatchAgents(request, wait_for_ready=False)
    was_served = False
    try:
        while True:
            async with asyncio.timeout(SILENCE_MAX_S):
                response = await call.read()
            if not isinstance(response, WatchAgentsResponse):
                return was_served  # the end of the stream
            was_served = True
            changed(view.feed(response))
            if response.draining:
                return was_served
    except grpc.aio.AioRpcError as error:
        log.warning(
            "registry stream lost", action="registry_lost", code=error.code().name, why=error.details()
        )
    except TimeoutError:
        log.warning("registry stream silent", action="registry_silent", silence_s=SILENCE_MAX_S)
    finally:
        call.cancel()
    return was_served
