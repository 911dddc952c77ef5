"""Become a service: claim its pidfile, enter a box of its own when root, and exec its binary.

Run as a script (`python -I -S svcbox.py SPEC`) with the standard library only. The pid stays the same through
exec, so whoever reads the pidfile finds the service itself.

Root never runs a service as root and never touches the host's users or the modes of directories above the
data: the box is a private mount namespace with an allow-list root, made *before* the uid changes, so the data
may lie under a 0700 directory. Where namespaces are refused, the uid alone changes, if the data is reachable.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import pwd
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EX_UNAVAILABLE = 69
EX_TEMPFAIL = 75
INNER_UID = 1000
"""What a service is called inside a user namespace of its own."""

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_LAST_CAP = 63
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache")
_SCRATCH = ("/dev/shm", "/tmp")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class UnreachableError(Exception):
    """The service cannot run here; the sentence says why."""


class _Libc:
    """The few system calls that the os module lacks in Python 3.11."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __call__(self, name: str, *args: Any) -> None:
        if getattr(self._libc, name)(*args) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")

    def mount(self, source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
        names = [os.fsencode(source), os.fsencode(target), kind.encode() if kind else None]
        self("mount", *names, ctypes.c_ulong(flags), data.encode() or None)


def main(argv: list[str]) -> None:
    """Claim, box, exec; leave one sentence on stderr when that is impossible."""
    spec = json.loads(argv[1])
    try:
        claim(Path(spec["pidfile"]), spec["digest"])
        box = spec["box"]
        if box is not None and os.geteuid() == 0:
            _enter(_Libc(), box)
        os.chdir(spec["cwd"])
        os.execve(spec["argv"][0], spec["argv"], dict(os.environ))
    except (OSError, UnreachableError) as error:
        sys.stderr.write(f"cannot start '{spec['name']}': {error}\n")
        sys.exit(EX_UNAVAILABLE)


# --- pidfile -----------------------------------------------------------------------------------------------


def claim(pidfile: Path, digest: str) -> None:
    """Write who we are before anything is started, unless a living process already holds the name."""
    with pidfile.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        holder = parse_record(file.read())
        if holder is not None and alive(holder):
            sys.stderr.write(f"already running as pid {holder['pid']}\n")
            sys.exit(EX_TEMPFAIL)
        file.truncate(0)
        record = {"pid": os.getpid(), "started": started(os.getpid()), "boot": boot_id(), "digest": digest}
        file.write(json.dumps(record))


def parse_record(text: str) -> dict[str, Any] | None:
    """Read a pidfile's record; a torn or foreign one counts as none."""
    try:
        record = json.loads(text)
        return {key: record[key] for key in ("pid", "started", "boot", "digest")}
    except (ValueError, KeyError, TypeError):
        return None


def alive(record: dict[str, Any]) -> bool:
    """True when the recorded process, and not a later owner of its pid, still runs."""
    return bool(record["boot"] == boot_id() and record["started"] == started(record["pid"]))


def started(pid: int) -> int | None:
    """Return when the process started (clock ticks after boot); None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    """Name this boot: ticks and pids mean nothing after a reboot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


# --- box ---------------------------------------------------------------------------------------------------


def _enter(libc: _Libc, box: dict[str, Any]) -> None:
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    boxed = _unshare(libc)
    if boxed:
        _build_root(libc, box)
    _drop(libc, box["uid"], proc)
    if not boxed:
        _check_reach(box)


def _unshare(libc: _Libc) -> bool:
    """Leave the host's mounts and, if allowed, its network. The IPC namespace stays shared on purpose:
    Postgres finds leftover backends of a killed postmaster through System V shared memory."""
    for flags in (_CLONE_NEWNS | _CLONE_NEWNET, _CLONE_NEWNS):
        with contextlib.suppress(OSError):
            libc("unshare", flags)
            return True
    return False


def _build_root(libc: _Libc, box: dict[str, Any]) -> None:
    root = Path(box["root"])
    libc.mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    libc.mount("tmpfs", str(root), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            _inside(root, path).symlink_to(path.readlink())
        elif path.exists():
            _bind(libc, path, _inside(root, path), writable=False)
    for path in map(Path, _DEVICES):
        _bind(libc, path, _inside(root, path), writable=True, devices=True)
    for path in map(Path, _SCRATCH):
        _inside(root, path).mkdir(parents=True)
        libc.mount("tmpfs", str(_inside(root, path)), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    _name_user(root, box["uid"] or INNER_UID)
    for source, target, mode in box["binds"]:
        _bind(libc, Path(source), _inside(root, Path(target)), writable=mode == "rw")
    os.chdir(root)
    libc("pivot_root", b".", b".")
    libc("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _bind(libc: _Libc, source: Path, target: Path, *, writable: bool, devices: bool = False) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    libc.mount(str(source), str(target), None, _MS_BIND | _MS_REC)
    # A mount inherited from an outer user namespace refuses to lose its flags: keep those it has.
    kept = os.statvfs(target).f_flag & (_MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    flags = _MS_NOSUID | kept | (0 if devices else _MS_NODEV) | (0 if writable else _MS_RDONLY)
    libc.mount("none", str(target), None, _MS_BIND | _MS_REMOUNT | flags)


def _name_user(root: Path, uid: int) -> None:
    """Give the uid a name inside the box: initdb asks for one, and the host need not have it."""
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text(f"service:x:{uid}:{uid}::/:/bin/false\n")
    (root / "etc/group").write_text(f"service:x:{uid}:\n")


def _drop(libc: _Libc, uid: int, proc: int) -> None:
    for cap in range(_LAST_CAP + 1):
        with contextlib.suppress(OSError):  # beyond the kernel's last capability, or not ours to drop
            libc("prctl", _PR_CAPBSET_DROP, ctypes.c_ulong(cap), 0, 0, 0)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        _rename_root(libc, proc)
    libc("prctl", _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)


def _rename_root(libc: _Libc, proc: int) -> None:
    """Where only uid 0 is mapped (root of a rootless container), be somebody else to the service alone."""
    libc("unshare", _CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_UID} 0 1"),
        ("gid_map", f"{INNER_UID} 0 1"),
    ):
        fd = os.open(name, os.O_WRONLY, dir_fd=proc)
        os.write(fd, text.encode())
        os.close(fd)


def _check_reach(box: dict[str, Any]) -> None:
    for _, target, mode in box["binds"]:
        if not os.access(target, os.R_OK | os.X_OK | (os.W_OK if mode == "rw" else 0)):
            raise UnreachableError(
                f"namespaces are refused here and uid {box['uid']} cannot reach '{target}'; run as an"
                " ordinary user, or keep the home and the virtual environment outside 0700 directories"
            )


# --- choosing the uid (the caller's side) --------------------------------------------------------


def choose_uid(preferred: int, data: Path) -> int:
    """Return under which uid root should run the owner of `data`; 0 asks for a user namespace.

    Without a box the uid needs a name on the host, because initdb asks for it: then it is nobody's.
    """
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid
    if not any(low <= preferred < high for low, high in _mapped()):
        return 0
    return preferred if _boxes_work() else pwd.getpwnam("nobody").pw_uid


@functools.cache
def _boxes_work() -> bool:
    """Try, in a thread that ends at once: mounts belong to the thread that leaves the others'."""
    tried: list[bool] = []
    thread = threading.Thread(target=lambda: tried.append(_unshare(_Libc())))
    thread.start()
    thread.join()
    return tried == [True]


def _mapped() -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        low, _, count = map(int, line.split())
        yield low, low + count


if __name__ == "__main__":
    main(sys.argv)
