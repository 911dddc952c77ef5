"""What is known on disk of each sandbox, so that a new fork server or factory finds those that still live."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from factory_server.drivers.namespaces.cgroups import Group

_STEM_MAX: Final = 40


def stem(instance: str) -> str:
    """A short file name for an instance: unix socket paths end at 107 bytes."""
    if len(instance) <= _STEM_MAX:
        return instance
    return hashlib.sha256(instance.encode()).hexdigest()[:32]


def boot_id() -> str:
    """This boot of the machine; process start times are only comparable within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 when there is no such process.

    Together with the pid it names one process for ever.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    state, *rest = text.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(rest[18])


@dataclass(frozen=True, slots=True)
class Record:
    """One sandbox: its place, its owner's labels, its groups, and the process that is its pid 1."""

    instance: str
    slot: int
    labels: dict[str, str]
    groups: tuple[Group, ...] = ()
    pid: int = 0
    started: int = 0
    boot: str = ""
    ready: bool = False

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return bool(self.pid) and self.boot == boot_id() and start_time(self.pid) == self.started


@dataclass(slots=True)
class Records:
    """A directory of records, one file each, replaced atomically."""

    directory: Path
    _boot: str = field(default_factory=boot_id)

    def _path(self, instance: str) -> Path:
        return self.directory / f"{stem(instance)}.json"

    def write(self, record: Record) -> Record:
        """Store, stamped with this boot."""
        record = replace(record, boot=self._boot)
        path = self._path(record.instance)
        # Written out: `asdict` leaks a little memory with every call, and this process lives for months.
        body = {name: getattr(record, name) for name in Record.__slots__}
        body["groups"] = [
            {"version": g.version, "controllers": sorted(g.controllers), "path": g.path}
            for g in record.groups
        ]
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(body))
        fresh.replace(path)
        return record

    def remove(self, instance: str) -> None:
        """Forget; it may be unknown."""
        self._path(instance).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Record]:
        for path in sorted(self.directory.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                yield parse(json.loads(path.read_text()))


def parse(body: dict[str, Any]) -> Record:
    """Read a record's JSON."""
    groups = tuple(Group(g["version"], frozenset(g["controllers"]), g["path"]) for g in body["groups"])
    return Record(**{**body, "groups": groups})
