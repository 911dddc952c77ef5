"""Sockets that agents made, seen from the host: hard links in directories that no agent can write.

A socket is linked first and looked at afterwards, in a directory of ours: whatever the agent does to the
name in its own directory in between, what we checked is what we keep. A symbolic link is linked as itself and
refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PEER_MODE: Final = 0o666  # peers have other host users; they can only connect where we show the socket
FACTORY_MODE: Final = 0o600
SERVICE: Final = "svc.sock"
HTTP: Final = "http.sock"


class NotASocketError(OSError):
    """What lies there is no socket, or no longer there."""


def adopt(source: Path, target: Path, *, mode: int) -> None:
    """Make `target` a hard link to the socket at `source`, replacing what was there.

    The name it has on the way is this thread's alone: replicas that share the directories may adopt the same
    socket at the same time, and all of them succeed.
    """
    fresh = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh, follow_symlinks=False)
        if not stat.S_ISSOCK(fresh.lstat().st_mode):
            fresh.unlink()
            raise NotASocketError(f"'{source.name}' is not a socket")
        fresh.chmod(mode)
        _replace(fresh, target)
    except FileNotFoundError as error:  # never made, or taken away while we looked
        raise NotASocketError(f"there is no socket '{source.name}'") from error


def publish(own: Path, target: Path, http: Path) -> None:
    """Adopt what an agent serves: its endpoint for peers, and for the factory alone its HTTP socket, if any."""
    adopt(own / SERVICE, target, mode=PEER_MODE)
    try:
        adopt(own / HTTP, http, mode=FACTORY_MODE)
    except NotASocketError:
        if os.path.lexists(own / HTTP):
            raise
        return  # it has none, or we have taken it already
    close_door(own / HTTP)


def _replace(fresh: Path, target: Path) -> None:
    fresh.replace(target)
    # Renaming one hard link onto another of the same inode does nothing and leaves both.
    fresh.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a socket; None for anything else."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


def wire(directory: Path, links: Mapping[str, str]) -> list[str]:
    """Make `directory` hold exactly these links; the answer names those whose target is not there."""
    wanted = {name: _identity(Path(target)) for name, target in links.items()}
    present = {path.name: _identity(path) for path in directory.iterdir()}
    for name in present:
        if wanted.get(name) is None:
            (directory / name).unlink(missing_ok=True)
    for name, identity in wanted.items():
        if identity is not None and present.get(name) != identity:
            fresh = directory / f".{name}"
            fresh.unlink(missing_ok=True)
            os.link(links[name], fresh, follow_symlinks=False)
            _replace(fresh, directory / name)
    return sorted(name for name, identity in wanted.items() if identity is None)


def seal(directory: Path) -> None:
    """Take a directory away from the agent: it can still look names up, and no more."""
    os.chown(directory, 0, 0)
    directory.chmod(0o711)


def close_door(path: Path) -> None:
    """Remove a name, if it is still there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
