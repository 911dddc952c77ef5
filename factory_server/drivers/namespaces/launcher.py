"""Where a factory keeps its sandboxes' files, and how its fork server is started."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from factory_server.core.errors import Unavailable
from factory_server.drivers.namespaces import interpreter
from factory_server.drivers.namespaces.zygote import SOCKET_NAME, Settings

__all__ = ["Places", "Settings", "Wish", "fingerprint", "launch", "places", "settings"]

LAUNCH_MAX_S: Final = 30.0
_SHORT_MAX: Final = 48  # longest directory below which `ctl/<40 characters>.sock` stays below 100 bytes
_SHORT_PLACES: Final = ("/run", "/tmp", "/var/tmp")
_SOCKET_DIRS: Final = ("own", "peers", "ctl", "svc")
_STATE_DIRS: Final = ("instances", "logs", "skills", "making")


@dataclass(frozen=True, slots=True)
class Places:
    """The directories of one factory: `state` for records and logs, `sockets` for all that holds sockets."""

    state: Path
    sockets: Path

    @property
    def fork_server(self) -> Path:
        """The fork server's own socket."""
        return self.sockets / SOCKET_NAME

    def make(self) -> None:
        """Make what is missing; refuse a directory that others could have prepared."""
        _private(self.state)
        _private(self.sockets)
        for name in _SOCKET_DIRS:
            (self.sockets / name).mkdir(exist_ok=True)
        for name in _STATE_DIRS:
            (self.state / name).mkdir(exist_ok=True)


def places(state_dir: Path) -> Places:
    """Pick the directories; sockets go to a short private one when `state_dir` is too long for them."""
    state = state_dir.resolve()
    if len(str(state / "s")) <= _SHORT_MAX:
        return Places(state, state / "s")
    digest = hashlib.sha256(str(state).encode()).hexdigest()[:12]
    return Places(state, _short_place(state) / f"hf-{os.geteuid()}-{digest}")


def _short_place(state: Path) -> Path:
    """Where short paths are; on the state's own filesystem if possible, for stores' sockets are linked, too."""
    existing = next(path for path in (state, *state.parents) if path.exists())
    usable = [Path(place) for place in _SHORT_PLACES if os.access(place, os.W_OK)]
    near = [place for place in usable if place.stat().st_dev == existing.stat().st_dev]
    if not usable:
        raise Unavailable(
            f"{state} is too long for sockets, and none of {', '.join(_SHORT_PLACES)} can be used"
        )
    return (near or usable)[0]


def _private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Unavailable(f"{directory} must be a directory of the factory's own user")
    directory.chmod(0o700)


def fingerprint(entry: str, packages: dict[str, str]) -> str:
    """Changes when a running fork server would fork something else than a new one."""
    parts = [entry, sys.version, sys.prefix]
    for name, source in (("", str(Path(__file__).parent)), *sorted(packages.items())):
        files = [Path(source)] if Path(source).is_file() else sorted(Path(source).rglob("*.py"))
        parts += [name, *(f"{file}:{file.stat().st_mtime_ns}" for file in files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a factory asks of its fork server, whatever the tier."""

    where: Places
    factory: str
    entry: str
    packages: tuple[str, ...]
    leash_s: float
    bases: Path


def settings(wish: Wish, rootless: bool) -> Settings:
    """What the fork server is told; reads the packages' files, so call in a thread."""
    names = {wish.entry.partition(".")[0].partition(":")[0], *wish.packages}
    located = interpreter.locate(sorted(names))
    mark = fingerprint(wish.entry, located)
    located |= interpreter.locate(["factory_server"])
    return Settings(
        factory=wish.factory,
        entry=wish.entry,
        state=str(wish.where.state),
        sockets=str(wish.where.sockets),
        bases=str(wish.bases),
        packages=_only_ours(located),
        fingerprint=mark,
        rootless=rootless,
        leash_s=wish.leash_s,
    )


def _only_ours(located: dict[str, str]) -> dict[str, str]:
    """Of the control plane, an agent sees nothing but the fork server's own package."""
    server = located.pop("factory_server", None)
    if server is not None:
        part = "drivers/namespaces"
        located[f"factory_server/{part}"] = f"{server}/{part}"
    return located


def launch(wish: Settings) -> None:
    """Start the fork server; returns when it listens. Blocking: call in a thread."""
    root = Path(__file__).parents[3]
    environment = {
        "PYTHONPATH": str(root),
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LANG": "C.UTF-8",
    }
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    command = [sys.executable, "-m", "factory_server.drivers.namespaces.zygote"]
    command += ["--launch", json.dumps(asdict(wish))]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=LAUNCH_MAX_S,
            check=False,
            close_fds=True,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the sandboxes' fork server did not start within {LAUNCH_MAX_S:g} s") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise Unavailable(f"cannot start the sandboxes' fork server: {reason}")
