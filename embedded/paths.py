"""Where the embedded stack keeps its files, and short names for sockets that lie deep."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

HOME_MAX_CHARS = 50
"""A home longer than this gets a short alias: a unix socket's path must stay under 108 bytes."""


class UnsafeDirectoryError(Exception):
    """A directory that should be private belongs to somebody else."""


def prepare_home(home: Path) -> Path:
    """Create the home and its own folders; return its real, absolute path.

    The home can be passed through but not listed (0711): a service that runs under another uid reaches
    its own folder, and every folder inside is private to its owner.
    """
    home = home.resolve()
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o711)
    for name in ("logs", "services"):
        private_dir(home / name)
    return home


def private_dir(path: Path) -> Path:
    """Create a directory only its owner can enter, or check that the existing one is ours."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise UnsafeDirectoryError(f"cannot use '{path}': it is not a directory of uid {os.geteuid()}")
    return path


def socket_dir(home: Path) -> Path:
    """Return a short path that leads to `home`: the home itself, or an alias when its path is long.

    The alias is a symbolic link in a private directory named by a hash of the home. The sockets themselves
    always lie in the home, on one filesystem with the sandboxes, so that they can be hard-linked.
    """
    home = home.resolve()
    if len(os.fsencode(home)) <= HOME_MAX_CHARS:
        return home
    base = private_dir(_alias_dir(home))
    if os.geteuid() == 0:
        base.chmod(0o711)  # a service may pass under its own uid; there is only the link to find
    link = base / "h"
    _point(link, home)
    return link


def forget_socket_dir(home: Path) -> None:
    """Remove the alias of a home whose services have stopped."""
    base = _alias_dir(home.resolve())
    (base / "h").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        base.rmdir()


def _alias_dir(home: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return _runtime_root() / f"hyperfactory-{os.geteuid()}-{digest}"


def _runtime_root() -> Path:
    """Prefer /run for root: it is not swept by cleaners of old temporary files."""
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run")
    return Path("/tmp")  # the directory below it is private and its owner is checked


def _point(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".h-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
