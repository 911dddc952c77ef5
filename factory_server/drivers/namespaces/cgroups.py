"""Resource limits of a sandbox: find the cgroup hierarchies (v1, v2 or both) and make groups below our own.

Paths are kept relative to the mount of all hierarchies, because the fork server sees that mount at another
place than the factory does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
_V1_WANTED: Final = ("memory", "pids", "cpu", "cpuacct", "freezer")
_V2_WANTED: Final = ("memory", "pids", "cpu")
_CPU_PERIOD_US: Final = 100_000


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One place where groups are made: its version, the controllers it carries, the group we live in."""

    version: int
    controllers: frozenset[str]
    base: str  # relative to ROOT


@dataclass(frozen=True, slots=True)
class Group:
    """A sandbox's group in one hierarchy."""

    version: int
    controllers: frozenset[str]
    path: str  # relative to ROOT


def _own_paths(text: str) -> dict[frozenset[str], str]:
    """Parse /proc/self/cgroup: controllers → path; the v2 hierarchy has no controllers there."""
    paths = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        paths[frozenset(filter(None, names.split(",")))] = path
    return paths


def detect(root: Path = ROOT, proc: Path = Path("/proc/self"), *, of: Path | None = None) -> list[Hierarchy]:
    """The hierarchies mounted below `root`, with the group that this process, or the one of `of`, lives in."""
    own = _own_paths(((of or proc) / "cgroup").read_text())
    found = []
    for line in (proc / "mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        mount_root, mount_point = left.split()[3:5]
        fstype, _, options = right.split()[:3]
        if fstype not in ("cgroup", "cgroup2") or not Path(mount_point).is_relative_to(root):
            continue
        names = frozenset() if fstype == "cgroup2" else _match(own, frozenset(options.split(",")))
        if names is None or names not in own:
            continue
        inside = os.path.relpath(own[names], mount_root)
        if inside.startswith(".."):
            inside = "."  # a container that sees its own group as the mount's root
        base = os.path.normpath(Path(mount_point).relative_to(root) / inside)
        if fstype == "cgroup2":
            found.append(Hierarchy(2, _v2_controllers(root / base), base))
        elif names & set(_V1_WANTED):
            found.append(Hierarchy(1, names & set(_V1_WANTED), base))
    return _without_doubles(found)


def _match(own: Mapping[frozenset[str], str], options: frozenset[str]) -> frozenset[str] | None:
    return next((names for names in own if names and names <= options), None)


def _v2_controllers(base: Path) -> frozenset[str]:
    try:
        offered = (base / "cgroup.controllers").read_text().split()
    except OSError:
        return frozenset()
    return frozenset(offered) & set(_V2_WANTED)


def _without_doubles(found: Sequence[Hierarchy]) -> list[Hierarchy]:
    """Keep v1 alone or v2 alone where one carries all: each group costs time to make, join and remove."""
    modern = [hierarchy for hierarchy in found if hierarchy.version == 2]
    if any(hierarchy.controllers for hierarchy in modern):
        return [h for h in found if h.version == 2 or not h.controllers <= {"cpuacct", "freezer"}]
    if any("freezer" in hierarchy.controllers for hierarchy in found):
        return [hierarchy for hierarchy in found if hierarchy.version == 1]
    return list(found)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a group shall hold its sandbox to."""

    memory_bytes: int
    pids_max: int
    cpu_millis: int


class Cgroups:
    """Makes, reads and removes the groups of one factory."""

    def __init__(self, hierarchies: Sequence[Hierarchy], factory: str, *, root: Path = ROOT) -> None:
        self._hierarchies = hierarchies
        self._parent = f"hf-{factory}"
        self._root = root
        self._delegated: set[str] = set()

    def create(self, name: str, bounds: Bounds) -> tuple[list[Group], dict[str, str]]:
        """Make a group per hierarchy; the second answer tells for each missing limit why it is missing."""
        groups: list[Group] = []
        missing = dict.fromkeys(_V2_WANTED, "no cgroup hierarchy carries this controller")
        for hierarchy in self._hierarchies:
            path = str(Path(hierarchy.base) / self._parent / name)
            controllers, why_not = hierarchy.controllers, self._delegate(hierarchy)
            try:
                (self._root / path).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                controllers, why_not = frozenset(), f"cannot make a cgroup: {error.strerror}"
            else:
                controllers = frozenset() if why_not else controllers
                groups.append(Group(hierarchy.version, controllers, path))
            for limit in hierarchy.controllers & missing.keys():
                missing[limit] = why_not or self._limit(hierarchy, path, limit, bounds)
        return groups, {limit: why for limit, why in missing.items() if why}

    def _delegate(self, hierarchy: Hierarchy) -> str:
        """Hand v2 controllers down to our children, once; empty when they are there, else why not."""
        if hierarchy.version == 1 or not hierarchy.controllers or hierarchy.base in self._delegated:
            return ""
        wish = " ".join(f"+{controller}" for controller in sorted(hierarchy.controllers))
        base = self._root / hierarchy.base
        try:
            (base / self._parent).mkdir(exist_ok=True)
            for level in (base, base / self._parent):
                (level / "cgroup.subtree_control").write_text(wish)
        except OSError as error:
            return f"cannot delegate cgroup controllers: {error.strerror}"
        self._delegated.add(hierarchy.base)
        return ""

    def _limit(self, hierarchy: Hierarchy, path: str, limit: str, bounds: Bounds) -> str:
        """Write one limit; empty when it holds, else why not."""
        quota_us = bounds.cpu_millis * _CPU_PERIOD_US // 1000
        memory, pids = str(bounds.memory_bytes), str(bounds.pids_max)
        if hierarchy.version == 2:
            files = {
                "memory": {"memory.max": memory, "memory.swap.max": "0"},
                "pids": {"pids.max": pids},
                "cpu": {"cpu.max": f"{quota_us} {_CPU_PERIOD_US}"},
            }[limit]
        else:
            files = {
                "memory": {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
                "pids": {"pids.max": pids},
                "cpu": {"cpu.cfs_quota_us": str(quota_us)},
            }[limit]
        for name, value in files.items():
            try:
                (self._root / path / name).write_text(value)
            except OSError as error:
                if "swap" in name or "memsw" in name:
                    continue  # a kernel without swap accounting
                return f"cannot write {name}: {error.strerror}"
        return ""

    def existing(self, name: str) -> list[Group]:
        """The groups of this name that exist, whoever made them."""
        groups = (
            Group(h.version, h.controllers, str(Path(h.base) / self._parent / name))
            for h in self._hierarchies
        )
        return [group for group in groups if (self._root / group.path).is_dir()]

    def join(self, groups: Sequence[Group]) -> None:
        """Move the calling process, which must have one thread, into its groups."""
        for group in groups:
            # We have one thread. Moving a whole process waits for a lock of the whole system (8 ms); moving
            # the calling thread does not, but only v1 allows it.
            door = "tasks" if group.version == 1 else "cgroup.procs"
            (self._root / group.path / door).write_text("0")

    def pids(self, groups: Sequence[Group]) -> list[int]:
        """Every process in the groups."""
        found: set[int] = set()
        for group in groups:
            try:
                found.update(map(int, (self._root / group.path / "cgroup.procs").read_text().split()))
            except FileNotFoundError:
                continue
        return sorted(found)

    def oom_kills(self, groups: Sequence[Group]) -> int:
        """How many processes of the sandbox the kernel killed for want of memory."""
        for group in groups:
            if "memory" in group.controllers:
                name = "memory.events" if group.version == 2 else "memory.oom_control"
                return _field(self._root / group.path / name, "oom_kill")
        return 0

    def remove(self, groups: Sequence[Group]) -> bool:
        """Remove the groups; False while the kernel still counts a dying process in one."""
        gone = True
        for group in groups:
            try:
                (self._root / group.path).rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def remove_parents(self) -> None:
        """Remove the factory's own groups if they are empty."""
        for hierarchy in self._hierarchies:
            path = self._root / hierarchy.base / self._parent
            if path.is_dir() and not any(child.is_dir() for child in path.iterdir()):
                path.rmdir()

    def freeze(self, groups: Sequence[Group], *, frozen: bool) -> bool:
        """Ask the kernel to stop or continue every process; False when no group can."""
        for group in groups:
            if group.version == 2:
                (self._root / group.path / "cgroup.freeze").write_text("1" if frozen else "0")
                return True
            if "freezer" in group.controllers:
                (self._root / group.path / "freezer.state").write_text("FROZEN" if frozen else "THAWED")
                return True
        return False

    def is_frozen(self, groups: Sequence[Group]) -> bool:
        """Whether every process has stopped."""
        for group in groups:
            if group.version == 2:
                return _field(self._root / group.path / "cgroup.events", "frozen") == 1
            if "freezer" in group.controllers:
                return (self._root / group.path / "freezer.state").read_text().strip() == "FROZEN"
        return False

    def usage(self, groups: Sequence[Group]) -> tuple[int, int, float]:
        """Memory in bytes, number of tasks, seconds of CPU."""
        memory = pids = 0
        cpu_s = 0.0
        for group in groups:
            path = self._root / group.path
            v2 = group.version == 2
            if "memory" in group.controllers:
                memory = _number(path / ("memory.current" if v2 else "memory.usage_in_bytes"))
            if "pids" in group.controllers:
                pids = _number(path / "pids.current")
            if v2:
                cpu_s = _field(path / "cpu.stat", "usage_usec") / 1e6
            elif "cpuacct" in group.controllers:
                cpu_s = _number(path / "cpuacct.usage") / 1e9
        return memory, pids, cpu_s


def _number(path: Path) -> int:
    return int(path.read_text())


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
