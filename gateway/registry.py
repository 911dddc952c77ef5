"""The registry as the gateway sees it: which name answers where, and who waits for a change of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hyperfactory.v1 import types_pb2
from wire.identity import agent_authority, agent_spiffe

SERVING: Final = frozenset({types_pb2.AGENT_STATE_READY, types_pb2.AGENT_STATE_BUSY})
LEAVING: Final = frozenset({types_pb2.AGENT_STATE_DRAINING, types_pb2.AGENT_STATE_FAILED})
_UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class Route:
    """What the gateway needs to know of an agent."""

    agent: str
    uid: str
    authority: str
    spiffe: str
    crew: str
    state: types_pb2.AgentState.ValueType
    generation: int
    socket: str
    group: str
    frozen: bool = False

    @property
    def serving(self) -> bool:
        return self.state in SERVING and bool(self.socket) and not self.frozen

    @property
    def state_name(self) -> str:
        return types_pb2.AgentState.Name(self.state).removeprefix("AGENT_STATE_")


def route_of(agent: types_pb2.Agent) -> Route:
    """The route of an agent as the factory described it."""
    in_group = agent.replicas > 1 and agent.group not in ("", agent.name)
    return Route(
        agent=agent.id,
        uid=agent.uid,
        authority=agent_authority(agent.name, agent.crew),
        spiffe=agent_spiffe(agent.crew, agent.name),
        crew=agent.crew,
        state=agent.state,
        generation=agent.generation,
        socket=socket_path(agent.endpoint.direct),
        group=agent_authority(agent.group, agent.crew) if in_group else "",
        frozen=agent.HasField("frozen_time"),
    )


def socket_path(target: str) -> str:
    """The absolute path of a `unix:` target; empty for anything else."""
    path = target.removeprefix(_UNIX) if target.startswith(_UNIX) else ""
    if path.startswith("//"):
        path = path.removeprefix("//")
    return path if path.startswith("/") else ""


Observer = Callable[[Route, bool], None]
"""Told the route of an agent as it is now, or as it was last, with True, when the agent is gone."""


class Registry:
    """Last known routes. A new snapshot replaces them when it is complete, not when it begins."""

    def __init__(self) -> None:
        self._agents: dict[str, Route] = {}
        self._names: dict[str, str] = {}
        self._groups: dict[str, set[str]] = {}
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._seen: set[str] | None = None
        self.observers: list[Observer] = []
        self.synced = asyncio.Event()
        self.current = False
        self.groups_changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._agents)

    def agents(self) -> Iterable[Route]:
        return self._agents.values()

    def find(self, authority: str) -> Route | None:
        """The agent that answers to the name."""
        agent = self._names.get(authority)
        return None if agent is None else self._agents.get(agent)

    def members(self, authority: str) -> list[Route]:
        """The agents of the group of this name."""
        return [self._agents[agent] for agent in self._groups.get(authority, ())]

    def group_members(self) -> Iterator[Route]:
        """The agents of all groups."""
        return (self._agents[agent] for members in self._groups.values() for agent in members)

    def begin(self) -> None:
        """A snapshot begins; until it is complete, what is known stays."""
        self._seen = set()
        self.current = False

    def lost(self) -> None:
        """The stream broke; what is known stays, and is no longer certain."""
        self._seen = None
        self.current = False

    def complete(self) -> None:
        """The snapshot is complete; agents that it did not name are gone."""
        if self._seen is not None:
            for agent in self._agents.keys() - self._seen:
                self._remove(agent)
        self._seen = None
        self.current = True
        self.synced.set()
        for authority in tuple(self._bells):
            self.ring(authority)

    def apply(self, agents: Iterable[types_pb2.Agent]) -> None:
        """Take in agents as they are now."""
        for agent in agents:
            if agent.state == types_pb2.AGENT_STATE_STOPPED:
                self._remove(agent.id)
                continue
            if self._seen is not None:
                self._seen.add(agent.id)
            self._put(route_of(agent))

    def restore(self, routes: Iterable[Route]) -> None:
        """Begin with what a predecessor knew. It is not certain until a snapshot is complete."""
        for route in routes:
            self._put(route)

    def _put(self, route: Route) -> None:
        held = self._agents.get(route.agent)
        if held == route or (
            held is not None and held.uid == route.uid and held.generation > route.generation
        ):
            return
        self._agents[route.agent] = route
        rival = self.find(route.authority)
        if rival is None or route.state not in LEAVING:
            self._names[route.authority] = route.agent
        if route.group:
            self._groups.setdefault(route.group, set()).add(route.agent)
        self._tell(route, gone=False)

    def _remove(self, agent: str) -> None:
        route = self._agents.pop(agent, None)
        if route is None:
            return
        if self._names.get(route.authority) == agent:
            del self._names[route.authority]
        if route.group:
            members = self._groups[route.group]
            members.discard(agent)
            if not members:
                del self._groups[route.group]
        self._tell(route, gone=True)

    def _tell(self, route: Route, *, gone: bool) -> None:
        if route.group:
            self.groups_changed.set()
            self.ring(route.group)
        self.ring(route.authority)
        for observer in self.observers:
            observer(route, gone)

    def ring(self, authority: str) -> None:
        """Wake those who wait for a change of this name."""
        for bell in self._bells.get(authority, ()):
            bell.set()

    @contextlib.contextmanager
    def watch(self, authority: str) -> Iterator[asyncio.Event]:
        """An event that is set at each change of the name, for as long as it is watched."""
        bell = asyncio.Event()
        self._bells.setdefault(authority, set()).add(bell)
        try:
            yield bell
        finally:
            bells = self._bells[authority]
            bells.discard(bell)
            if not bells:
                del self._bells[authority]
