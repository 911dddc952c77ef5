"""Who lives, and each end told once: by the process itself (pidfd) or by the engine, whoever is first."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from factory_server.core.sandbox import Exit, Sandbox
from factory_server.drivers.docker import exitinfo
from factory_server.drivers.exitstream import ExitHub
from factory_server.drivers.namespaces.cgroups import Cgroups, Group, detect

REAP_POLL_S: Final = 0.001
REAP_POLLS: Final = 5
VERDICT_MAX_S: Final = 1.0
"""A process is gone for sure when its pidfd says so; so long the engine may take to tell why."""


@dataclass(eq=False, slots=True)
class Living:
    """One instance that serves."""

    sandbox: Sandbox
    pidfd: int
    groups: tuple[Group, ...]
    ooms: int | None = None  # read as it ends, because its groups go with it


@dataclass(eq=False)
class Roster:
    """Names and containers that live; all methods run on the event loop."""

    exits: ExitHub
    _by_name: dict[str, Living] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Living]:
        return iter(list(self._by_name.values()))

    def __contains__(self, instance: str) -> bool:
        return instance in self._by_name

    def get(self, instance: str) -> Living | None:
        """Who has this name."""
        return self._by_name.get(instance)

    def of(self, container: str) -> Living | None:
        """Who lives in this container."""
        return next((one for one in self if one.sandbox.container_id == container), None)

    def add(self, sandbox: Sandbox, pidfd: int, groups: tuple[Group, ...]) -> None:
        """From now on its end is told; takes the descriptor over."""
        self.forget(sandbox.instance)
        living = Living(sandbox, pidfd, groups)
        self._by_name[sandbox.instance] = living
        asyncio.get_running_loop().add_reader(pidfd, self._passed, living)

    def end(self, living: Living, how: Exit) -> None:
        """Tell that it ended, unless that was told."""
        if self._by_name.get(living.sandbox.instance) is living:
            self.forget(living.sandbox.instance)
            self.exits.push(how)

    def forget(self, instance: str) -> None:
        """Say nothing more of it."""
        living = self._by_name.pop(instance, None)
        if living is not None:
            asyncio.get_running_loop().remove_reader(living.pidfd)
            os.close(living.pidfd)

    def clear(self) -> None:
        """Say nothing more of anybody."""
        for instance in list(self._by_name):
            self.forget(instance)

    def _passed(self, living: Living) -> None:
        asyncio.get_running_loop().remove_reader(living.pidfd)
        living.ooms = _ooms(living.groups)
        self._ask(living, REAP_POLLS)

    def _ask(self, living: Living, polls: int) -> None:
        """Ask the kernel how it ended; wait for the engine where the kernel cannot tell."""
        name = living.sandbox.instance
        if self._by_name.get(name) is not living:
            return
        loop = asyncio.get_running_loop()
        status = exitinfo.wait_status(living.pidfd)
        how = Exit(name) if status is None else exitinfo.from_wait_status(name, status)
        if status is None and polls:
            loop.call_later(REAP_POLL_S, self._ask, living, polls - 1)
        elif status is None or (how.signal == signal.SIGKILL and living.ooms is None):
            loop.call_later(VERDICT_MAX_S, self.end, living, how)
        else:
            self.end(living, replace(how, oom=bool(living.ooms and how.signal == signal.SIGKILL)))


def _ooms(groups: tuple[Group, ...]) -> int | None:
    try:
        return Cgroups((), "").oom_kills(groups)
    except OSError:
        return None  # its groups are gone already


def open_process(pid: int, container: str) -> tuple[int, tuple[Group, ...]] | None:
    """A descriptor of a container's first process, and its groups; None when it is gone. Blocking."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        inside = container in Path(f"/proc/{pid}/cgroup").read_text()
        hierarchies = detect(of=Path(f"/proc/{pid}")) if inside else []
    except (OSError, ValueError):
        inside, hierarchies = False, []
    if not inside:
        os.close(pidfd)
        return None
    return pidfd, tuple(Group(h.version, h.controllers, h.base) for h in hierarchies)
