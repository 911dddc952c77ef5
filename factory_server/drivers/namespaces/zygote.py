"""Start the fork server: leave the factory, build the sandboxes' tree, go on inside it with the warm imports.

Two stages, because a Python that was started on the host would carry the host's paths into every agent:
`launch` detaches, builds the tree and replaces itself by a Python of that tree, which runs `serve`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import socket
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from factory_server.drivers.namespaces import child, interpreter, mounts, records
from factory_server.drivers.namespaces import syscalls as sys_
from factory_server.drivers.namespaces.agents import SLOTS_MAX, UID_BASE, Nursery
from factory_server.drivers.namespaces.cgroups import Cgroups, detect
from factory_server.drivers.namespaces.forkserver import ForkServer

SOCKET_NAME: Final = "zygote.sock"
BACKLOG: Final = 64
LEASES: Final = Path("/run/hyperfactory-users")
USER_BLOCKS: Final = 100
LOCK_TRIES: Final = 100
LOCK_PAUSE_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Settings:
    """What the factory decides; JSON on the command line, for the fork server has no secrets to hide."""

    factory: str
    entry: str
    state: str
    sockets: str
    bases: str
    packages: dict[str, str]
    fingerprint: str
    rootless: bool = False
    uid_base: int = UID_BASE
    leash_s: float = 0.0


def launch(settings: Settings) -> None:
    """Detach, then become the server; the caller's process ends when the server listens, or with the reason."""
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        reason = os.read(read_end, 4096)
        if reason == b"ok":
            os._exit(0)
        sys.stderr.write(reason.decode(errors="replace") or "the fork server ended while starting")
        sys.stderr.flush()
        os._exit(1)
    os.close(read_end)
    try:
        _lock(Path(settings.state))
        _detach(Path(settings.state))
        if not settings.rootless:
            settings = replace(settings, uid_base=_lease_users(Path(settings.state)))
        tree = interpreter.plan(settings.packages)
        _own_mounts(settings, tree)
        os.set_inheritable(write_end, True)
        arguments = [
            tree.executable,
            "-m",
            __spec__.name,
            "--serve",
            json.dumps(asdict(settings)),
            str(write_end),
        ]
        os.execve(tree.executable, arguments, interpreter.environment(tree))
    except BaseException as error:
        os.write(write_end, f"{type(error).__name__}: {error}".encode())
        os._exit(1)


def _lock(state: Path) -> None:
    """One server per state directory; the lock lives as long as this process, through the exec."""
    lock = os.open(state / "zygote.lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        select.select([], [], [], LOCK_PAUSE_S)  # its predecessor may be on its way out
    raise RuntimeError(f"another fork server runs for {state}")


def _lease_users(state: Path) -> int:
    """The first of a block of host user ids that no other factory on this host uses, as long as we live.

    The block of an earlier server is taken again if it is free, because its agents may still run.
    """
    try:
        LEASES.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        sys.stderr.write(f"host users may be shared with another factory: {error}\n")
        return UID_BASE
    note = state / "users"
    blocks = [int(note.read_text())] if note.exists() else []
    for block in [*blocks, *range(USER_BLOCKS)]:
        lease = os.open(LEASES / f"{block}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lease)
            continue
        os.set_inheritable(lease, True)
        note.write_text(str(block))
        return int(UID_BASE + block * SLOTS_MAX)
    raise RuntimeError(f"all {USER_BLOCKS} blocks of user ids below {LEASES} are in use")


def _detach(state: Path) -> None:
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(state / "zygote.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)


def _own_mounts(settings: Settings, tree: interpreter.PythonTree) -> None:
    root = Path(settings.state) / "root"
    root.mkdir(mode=0o700, exist_ok=True)
    if settings.rootless:
        uid, gid = os.geteuid(), os.getegid()
        sys_.unshare(sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    else:
        sys_.unshare(sys_.CLONE_NEWNS)
    mounts.build_root(str(root), tree, sockets=settings.sockets, state=settings.state, bases=settings.bases)


def serve(settings: Settings, report_fd: int) -> None:
    """Import the runtime, listen, and answer until told to stop."""
    try:
        sys_.prctl(sys_.PR_SET_CHILD_SUBREAPER, 1)
        _raise_file_limit()
        entry = _load(settings.entry)
        listener = _listen()
    except BaseException as error:
        os.write(report_fd, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    nursery = Nursery(
        entry=entry,
        rootless=settings.rootless,
        cgroups=Cgroups(detect(Path(mounts.HOST_CGROUPS)), settings.factory, root=Path(mounts.HOST_CGROUPS)),
        shelf=records.Records(Path(mounts.HOST_STATE) / "instances"),
        uid_base=settings.uid_base,
    )
    greeting = {
        "event": "hello",
        "pid": os.getpid(),
        "fingerprint": settings.fingerprint,
        "rootless": settings.rootless,
    }
    server = ForkServer(nursery, listener, settings.leash_s, greeting)
    # Children share these objects' pages as long as nobody, a garbage collector least of all, touches them.
    gc.collect()
    gc.disable()
    gc.freeze()
    os.write(report_fd, b"ok")
    os.close(report_fd)
    server.run()
    nursery.cgroups.remove_parents()
    with contextlib.suppress(FileNotFoundError):
        Path(mounts.HOST_SOCKETS, SOCKET_NAME).unlink()


def _raise_file_limit() -> None:
    """Four descriptors per agent."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _load(entry: str) -> child.Entry:
    module, _, name = entry.partition(":")
    home = importlib.import_module(module)
    # What an agent would import later, and each for itself: a fork server does it once for all.
    if warm := getattr(home, "warm", None):
        warm()
    loaded: child.Entry = getattr(home, name)
    return loaded


def _listen() -> socket.socket:
    path = Path(mounts.HOST_SOCKETS, SOCKET_NAME)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    return listener


def main(arguments: list[str]) -> None:
    """`--launch SETTINGS` on the host, `--serve SETTINGS FD` in the tree."""
    settings = Settings(**json.loads(arguments[1]))
    if arguments[0] == "--launch":
        launch(settings)
    else:
        serve(settings, int(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
