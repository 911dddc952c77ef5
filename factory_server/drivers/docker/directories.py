"""The directories that a container is shown, and the way from its first socket to the factory."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from factory_server.core.errors import Unavailable
from factory_server.drivers import packs
from factory_server.drivers.namespaces import wiring
from factory_server.drivers.namespaces.files import HOSTS_SUFFIX, Files
from factory_server.drivers.namespaces.records import stem

CONTROL: Final = "ctl.sock"
LOCALHOST: Final = "127.0.0.1       localhost\n"
_ADDRESS_CHARS: Final = 15
LISTEN_POLL_S: Final = 0.002  # between a socket's bind, which we are told, and its listen, which we are not


def own_of(files: Files, instance: str) -> Path:
    """Where the instance makes its sockets."""
    return files.where.sockets / "own" / stem(instance)


def hosts_of(files: Files, instance: str) -> Path:
    """What the instance sees as its /etc/hosts."""
    return files.where.sockets / "peers" / f"{stem(instance)}{HOSTS_SUFFIX}"


def write_hosts(files: Files, instance: str, names: Mapping[str, str]) -> None:
    """Have exactly these names lead to addresses. Blocking.

    It is the file itself that is mounted, so it keeps its place and shrinks only after it is written: whoever
    reads it now finds every name that stays, on a line as long as before.
    """
    lines = [LOCALHOST, *(f"{names[name]:<{_ADDRESS_CHARS}} {name}\n" for name in sorted(names))]
    text = "".join(lines).encode()
    descriptor = os.open(hosts_of(files, instance), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
    finally:
        os.close(descriptor)


def prepare(files: Files, instance: str, owner: int) -> tuple[Path, Path, Path]:
    """Fresh directories: the one of the instance's own sockets belongs to it. Blocking."""
    own, peers = own_of(files, instance), files.where.sockets / "peers" / stem(instance)
    files.remove(instance)
    for directory, mode in ((own, 0o700), (peers, 0o755)):
        directory.mkdir()
        directory.chmod(mode)
    if os.geteuid() == 0:
        os.chown(own, owner, owner)
    hosts = hosts_of(files, instance)
    hosts.write_text(LOCALHOST)
    hosts.chmod(0o644)
    return own, peers, packs.make_tree(files.where.state, stem(instance))


def adopt_control(files: Files, instance: str) -> bool:
    """Take the control socket to where only the factory can open it; False when there is none. Blocking."""
    control = files.control(instance)
    if control.is_socket():
        return True
    made = own_of(files, instance) / CONTROL
    try:
        wiring.adopt(made, control, mode=0o600)
    except wiring.NotASocketError as error:
        if control.is_socket():
            return True  # another process of this factory was quicker
        if os.path.lexists(made):
            raise Unavailable(f"'{instance}' made no control socket: {error}") from error
        return False
    wiring.close_door(made)
    return True


def remove_everything(files: Files) -> None:
    """Remove all files of the driver, when nothing runs any more. Blocking."""
    shutil.rmtree(files.where.sockets, ignore_errors=True)
    for name in ("instances", "logs", packs.SHOWN, packs.MAKING):
        shutil.rmtree(files.where.state / name, ignore_errors=True)
    for name in ("docker.lock", "networks.lock"):
        (files.where.state / name).unlink(missing_ok=True)


class Tenancy:
    """Whether other factory processes use the same directories; it ends with the process. Methods block."""

    def __init__(self, files: Files) -> None:
        self._lock = os.open(files.where.state / "docker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def alone(self) -> bool:
        """True for whoever came first: until `share` nobody else gets further than here."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            return False
        return True

    def share(self) -> None:
        """Let others in."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def end(self) -> None:
        """Leave."""
        os.close(self._lock)


async def listening(control: Path) -> None:
    """Return when the socket accepts; it was bound a moment ago."""
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(str(control))
        except ConnectionRefusedError:
            await asyncio.sleep(LISTEN_POLL_S)
        else:
            writer.close()
            return
