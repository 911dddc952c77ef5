"""A sandbox from the inside: the steps from a fresh fork to the agent's runtime, in the order that works.

Every step needs the one before it; the comments say why. The process that runs this becomes pid 1 of the
sandbox. It forks once more: pid 1 stays behind as the reaper of orphans, so that tools which lose their parent
never fill the process limit, and the second process becomes the runtime.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from factory_server.drivers.namespaces import mounts, reaper
from factory_server.drivers.namespaces import syscalls as sys_
from factory_server.drivers.namespaces.cgroups import Cgroups, Group

Entry = Callable[[str, str, str, int], None]

READY_FD: Final = 3
STATUS_FD: Final = reaper.STATUS_FD
GO_FD: Final = 5
FAILED: Final = b"!"  # a first byte on the ready pipe that says: text of a failure follows
EXIT_SETUP: Final = 70

_PARKED_FD: Final = 200
_MAX_FD: Final = 65536
_OPEN_FILES: Final = 4096
_MEMLOCK_BYTES: Final = 64 * 1024
_OOM_SCORE: Final = 500  # under host pressure, agents go before the factory and its stores
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_NAMESPACES: Final = (
    sys_.CLONE_NEWNS | sys_.CLONE_NEWNET | sys_.CLONE_NEWIPC | sys_.CLONE_NEWUTS | sys_.CLONE_NEWCGROUP
)


@dataclass(frozen=True, slots=True)
class Pipes:
    """The child's ends: it writes readiness, exit status and logs, and reads the permission to go on."""

    ready: int
    status: int
    go: int
    log: int


@dataclass(frozen=True, slots=True)
class Birth:
    """All that a child must know."""

    hostname: str
    uid: int
    rootless: bool
    view: mounts.View
    cgroups: Cgroups
    groups: tuple[Group, ...]
    pids_max: int  # by rlimit, where no cgroup bounds it; 0 for none
    data_bytes: int  # by rlimit, where no cgroup bounds it; 0 for none
    file_bytes: int
    filter: bytes
    entry: Entry


def live(birth: Birth, pipes: Pipes) -> None:
    """Become the sandbox; never returns."""
    step = "file descriptors"
    try:
        _keep_only(pipes)
        for step, action in _steps(birth):  # noqa: B007 - a failure names the step
            action()
        step = "go"
        if os.read(GO_FD, 1) != b"g":
            os._exit(EXIT_SETUP)  # the fork server died before it had noted us down: nobody would know us
        os.close(GO_FD)
        step = "runtime"
        _part_ways(os.fork())
        os.close(STATUS_FD)
        _run(birth.entry)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(READY_FD, FAILED + f"cannot enter the sandbox at '{step}': {error}".encode())
    os._exit(EXIT_SETUP)


def _steps(birth: Birth) -> tuple[tuple[str, Callable[[], None]], ...]:
    return (
        ("session", _own_session),
        # By its own hand and before the cgroup namespace, which shows this group as the root.
        ("cgroup", lambda: birth.cgroups.join(birth.groups)),
        ("namespaces", lambda: sys_.unshare(_NAMESPACES)),
        ("network", lambda: _name_and_loopback(birth.hostname)),
        ("mounts", lambda: mounts.enter(birth.view)),
        # After the mounts: nobody but root may make them, and the network belongs to a user namespace in
        # which the agent has no power.
        ("user", lambda: _become(birth)),
        # After the user namespace, which remembers the limit on processes that it was made under and holds all
        # processes of the outer user to it: rootless agents would share one limit.
        ("rlimits", lambda: _limit(birth)),
        ("privileges", _drop_privileges),
        # Last, because it refuses most of the above.
        ("seccomp", lambda: sys_.install_filter(birth.filter)),
    )


def _keep_only(pipes: Pipes) -> None:
    """Move the pipes to fixed numbers and close all else; a sibling's pipe must not leak in here."""
    ends = (pipes.ready, pipes.status, pipes.go, pipes.log)
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PARKED_FD) for fd in ends]
    for fd, target in zip(parked[:3], (READY_FD, STATUS_FD, GO_FD), strict=True):
        os.dup2(fd, target, inheritable=False)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(parked[3], 1)
    os.dup2(parked[3], 2)
    os.closerange(GO_FD + 1, _MAX_FD)


def _own_session() -> None:
    os.setsid()
    with open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write(str(_OOM_SCORE))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _name_and_loopback(hostname: str) -> None:
    socket.sethostname(hostname)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _limit(birth: Birth) -> None:
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_MEMLOCK: _MEMLOCK_BYTES,
        resource.RLIMIT_FSIZE: birth.file_bytes,
    }
    if birth.pids_max:
        bounds[resource.RLIMIT_NPROC] = birth.pids_max
    if birth.data_bytes:
        bounds[resource.RLIMIT_DATA] = birth.data_bytes
    for kind, value in bounds.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _become(birth: Birth) -> None:
    outer = 0 if birth.rootless else birth.uid
    if not birth.rootless:
        os.setgroups([])
        os.setresgid(birth.uid, birth.uid, birth.uid)
        os.setresuid(birth.uid, birth.uid, birth.uid)
        # The change of user made us non-dumpable, and our own /proc files root's; the maps are among them.
        sys_.prctl(sys_.PR_SET_DUMPABLE, 1)
    sys_.unshare(sys_.CLONE_NEWUSER)
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{mounts.INNER_ID} {outer} 1"),
        ("gid_map", f"{mounts.INNER_ID} {outer} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
            file.write(line)


def _drop_privileges() -> None:
    # A new user namespace starts with every capability and a full bounding set.
    sys_.drop_bounding_set()
    sys_.drop_capabilities()
    sys_.prctl(sys_.PR_SET_NO_NEW_PRIVS, 1)
    # Tools of the agent run as the same user: they must not read the runtime's memory, which holds its key.
    sys_.prctl(sys_.PR_SET_DUMPABLE, 0)


def _part_ways(forked: int) -> None:
    """Pid 1 stays behind as the reaper; returns in the runtime."""
    if forked:
        for fd in (0, 2, READY_FD):  # 1 stays: a new fork server finds the way to the log through it
            os.close(fd)
        os.set_inheritable(STATUS_FD, True)
        reaper.reap()


def _run(entry: Entry) -> None:
    os.chdir(mounts.WORKSPACE)
    os.umask(0o077)
    gc.enable()
    entry(mounts.OWN, mounts.PEERS, mounts.WORKSPACE, READY_FD)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
