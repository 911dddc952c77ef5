"""All MCP servers of one agent: started in the background, stopped and started again together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from agent_runtime.capabilities import Capabilities
from agent_runtime.offers import Resource
from agent_runtime.owner import TaskOwner
from agent_runtime.servers.run import SUBSCRIPTIONS
from agent_runtime.servers.server import Server
from agent_runtime.servers.spec import ServerSpec
from hyperfactory.v1 import types_pb2


class Servers:
    """What they list is offered as the agent's, under one name each; how they are is its condition."""

    def __init__(self, specs: Iterable[ServerSpec], workspace: Path, offered: Capabilities) -> None:
        self._servers = [
            Server(spec, workspace, offered, rank, self._retell) for rank, spec in enumerate(specs, start=1)
        ]
        self._owner: TaskOwner | None = None
        offered.add_conditions(self.conditions)
        offered.add_links(self._link)
        offered.tell_wishes(self._look_at_wishes)

    def __len__(self) -> int:
        return len(self._servers)

    @property
    def waiting(self) -> int:
        """How many calls wait for their callers to come back with answers."""
        return sum(server.waiting for server in self._servers)

    def promises(self, kind: str) -> bool:
        """Whether any of them may offer resources, or prompts, as far as is known."""
        return any(server.promises(kind) for server in self._servers)

    def start(self) -> None:
        """Begin to start all; returns at once. Harmless while they run."""
        if self._owner is not None:
            return
        self._owner = TaskOwner()
        for server in self._servers:
            self._owner.spawn(server.keep(), f"server {server.spec.name}")

    async def stop(self, *, hurry: bool = False) -> None:
        """End all; their processes are gone when this returns. In a hurry they are killed without a word."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        for server in self._servers:
            server.hurry = hurry
        await owner.close()

    def conditions(self) -> Sequence[types_pb2.Condition]:
        return [server.condition.to_message() for server in self._servers]

    def pids(self) -> dict[str, int]:
        """The processes that run now, by server."""
        return {server.spec.name: server.pid for server in self._servers if server.pid}

    def _link(self, uri: str) -> Resource | None:
        return next((found for server in self._servers if (found := server.link(uri))), None)

    def _look_at_wishes(self) -> None:
        for server in self._servers:
            server.look_at(SUBSCRIPTIONS)

    def _retell(self) -> None:
        for server in self._servers:
            server.retell()
