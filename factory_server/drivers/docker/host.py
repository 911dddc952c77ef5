"""What all parts of the driver share: the engine, the files, and who lives or is being made."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from factory_server.core.sandbox import Sandbox
from factory_server.drivers.docker import roster
from factory_server.drivers.docker.births import Birth, Flights
from factory_server.drivers.docker.engine import Engine
from factory_server.drivers.namespaces.files import Files
from factory_server.drivers.namespaces.records import stem

NAME: Final = "docker"
FILE_THREADS: Final = 2
_FOREIGN: Final = re.compile(r"[^a-zA-Z0-9_.-]")

T = TypeVar("T")


@dataclass(eq=False)
class Host:
    """One factory's part of one engine."""

    factory: str
    engine: Engine
    files: Files
    roster: roster.Roster
    births: dict[str, Birth] = field(default_factory=dict)
    flights: Flights = field(default_factory=Flights)
    users: dict[str, int] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="sandbox-files")
    )

    async def in_thread(self, action: Callable[..., T], *arguments: object) -> T:
        """Run what blocks on the disk."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, action, *arguments)

    def container(self, instance: str) -> str:
        """The name of an instance's container."""
        return f"hf-{self.factory}-{stem(instance)}"

    async def enrol(
        self, instance: str, container: str, pid: int, labels: Mapping[str, str]
    ) -> Sandbox | None:
        """Note down that it serves, and hear of its end; None when it has ended already."""
        opened = await self.in_thread(roster.open_process, pid, container)
        if opened is None:
            return None
        control = f"unix://{self.files.control(instance)}"
        sandbox = Sandbox(instance, NAME, control, pid, container, dict(labels))
        self.roster.add(sandbox, *opened)
        return sandbox


def factory_id(factory: str, state_dir: Path) -> str:
    """A factory's name on an engine; two homes of one name may share it, so the place belongs to the name."""
    place = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:8]
    return f"{_FOREIGN.sub('-', factory)}-{place}"
