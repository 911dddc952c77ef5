"""Find out what a sandbox holds, by trying from the inside; the same steps as an agent's, with another entry."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

ENFORCED: Final = "enforced"
PARTIAL: Final = "partial"
ABSENT: Final = "absent"
Finding = tuple[str, str]

WORKSPACE_BYTES: Final = 1024 * 1024
PIDS_MAX: Final = 16
SKILLS: Final = "/skills"
SEALED_POLLS: Final = 50
SEALED_POLL_S: Final = 0.01
_SEALED: Final = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV
_UNROUTABLE: Final = ("192.0.2.1", 9)
_NR_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_VERSION: Final = 1
_NR_IO_URING_SETUP: Final = 425
_CLONE_NEWUSER: Final = 0x10000000


def inside(own_dir: str, peers_dir: str, workspace: str, ready_fd: int) -> None:
    """Try everything, report as JSON on `ready_fd`, wait to be killed."""
    os.write(ready_fd, report().encode())
    signal.pause()


def report() -> str:
    """Try everything; the findings as JSON."""
    return json.dumps({name: _attempt(check) for name, check in _CHECKS.items()})


def _attempt(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except OSError as error:
        return ABSENT, f"the attempt itself failed: {error}"


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _user_namespace() -> Finding:
    inner, _, count = Path("/proc/self/uid_map").read_text().split()
    if count != "1":
        return ABSENT, f"{count} user ids are mapped"
    return ENFORCED, "" if inner == str(os.getuid()) else f"runs as {os.getuid()}"


def _host_user() -> Finding:
    outer = int(Path("/proc/self/uid_map").read_text().split()[1])
    return (ENFORCED, "") if outer else (ABSENT, "every agent is the factory's own user on the host")


def _capabilities() -> Finding:
    held = [name for name, value in _status().items() if name.startswith("Cap") and int(value, 16)]
    return (ABSENT, f"{', '.join(held)} not empty") if held else (ENFORCED, "")


def _no_new_privileges() -> Finding:
    return (ENFORCED, "") if _status()["NoNewPrivs"] == "1" else (ABSENT, "not set")


def _seccomp() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    calls: dict[str, Callable[[], int]] = {
        "io_uring_setup": lambda: int(libc.syscall(_NR_IO_URING_SETUP, 0, None)),
        "unshare": lambda: int(libc.unshare(_CLONE_NEWUSER)),
        "mount": lambda: int(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
    }
    for name, call in calls.items():
        if call() >= 0 or ctypes.get_errno() != errno.EPERM:
            return ABSENT, f"{name} was not refused"
    return (ENFORCED, "") if _status()["Seccomp"] == "2" else (ABSENT, "no filter")


def _read_only_root() -> Finding:
    for place in ("/", "/usr", "/app", "/etc", "/run", "/dev", "/skills"):
        try:
            Path(place, ".probe").touch()
        except OSError:
            continue
        return ABSENT, f"{place} can be written"
    return ENFORCED, ""


def _skill_packs() -> Finding:
    flags = os.statvfs(SKILLS).f_flag
    for _ in range(SEALED_POLLS):
        if flags & _SEALED == _SEALED:
            return ENFORCED, ""
        select.select([], [], [], SEALED_POLL_S)  # a container's mount is sealed a moment after its start
        flags = os.statvfs(SKILLS).f_flag
    if not flags & os.ST_RDONLY:
        return ABSENT, f"{SKILLS} is not mounted read-only"
    return PARTIAL, "read-only; nosuid and nodev by no_new_privileges and the lack of capabilities alone"


def _processes() -> Finding:
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    return (ENFORCED, "") if max(seen) <= PIDS_MAX else (ABSENT, "processes of the host are visible")


def _network() -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_UNROUTABLE)
        except OSError as error:
            refused = error.errno == errno.ENETUNREACH
            return (ENFORCED, "") if refused else (PARTIAL, f"connect: {error.strerror}")
    return ABSENT, "a route to the outside exists"


def _workspace_quota() -> Finding:
    block = b"x" * (WORKSPACE_BYTES * 3 // 4)
    for number in range(2):
        try:
            Path(f"/workspace/.probe{number}").write_bytes(block)
        except OSError as error:
            return (ENFORCED, "") if error.errno == errno.ENOSPC else (PARTIAL, error.strerror or "")
    return ABSENT, "more could be written than was granted"


def _process_limit() -> Finding:
    children: list[int] = []
    try:
        for _ in range(PIDS_MAX * 2):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError:
        return ENFORCED, ""
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return ABSENT, f"{len(children)} processes could be started"


_CHECKS: Final[dict[str, Callable[[], Finding]]] = {
    "user_namespace": _user_namespace,
    "distinct_host_user": _host_user,
    "no_capabilities": _capabilities,
    "no_new_privileges": _no_new_privileges,
    "seccomp": _seccomp,
    "read_only_root": _read_only_root,
    "skill_packs": _skill_packs,
    "own_processes_only": _processes,
    "no_network": _network,
    "workspace_quota": _workspace_quota,
    "process_limit": _process_limit,
}


def landlock_version() -> int:
    """The kernel's Landlock ABI, 0 when it has none."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(
        _NR_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION)
    )
    return max(int(answer), 0)
