"""All MCP servers of one agent: started in the background, stopped and started again together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from agent_runtime.owner import TaskOwner
from agent_runtime.servers.server import Offer, Server
from agent_runtime.servers.spec import ServerSpec
from hyperfactory.v1 import types_pb2


class Servers:
    """`offer` replaces the tools of one server, `changed` tells that a condition may be another."""

    def __init__(
        self, specs: Iterable[ServerSpec], workspace: Path, offer: Offer, changed: Callable[[], None]
    ) -> None:
        self._servers = [Server(spec, workspace, offer, changed) for spec in specs]
        self._owner: TaskOwner | None = None

    def __len__(self) -> int:
        return len(self._servers)

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
