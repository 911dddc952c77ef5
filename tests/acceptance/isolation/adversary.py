"""A hostile program inside a sandbox: it tries everything and prints a JSON table of what worked.

Self-contained: it runs in the sandbox with nothing but Python. `TARGETS` is put in front of it by the test.
"""

# ruff: noqa: PTH101, PTH108, PTH110, PTH115, PTH123, PTH207, PTH208, PTH211, SIM115, T201 - plain calls, as an attacker makes them
from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable

TARGETS: dict = globals().get("TARGETS", {})
TABLE: list[dict] = []
LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = platform.machine()
Attempt = Callable[[], object]


class HarmlessError(Exception):
    """The call went through, but gained nothing."""


def attempt(area: str, name: str, action: Attempt, *, allowed: bool = False) -> None:
    """Success is: `action` returned; an error of the system is a refusal."""
    try:
        gained = action()
        row = {"worked": True, "detail": repr(gained)[:120]}
    except (OSError, HarmlessError, ValueError, MemoryError, subprocess.SubprocessError) as error:
        row = {"worked": False, "detail": f"{type(error).__name__}: {error}"[:120]}
    TABLE.append({"area": area, "attempt": name, "allowed": allowed, **row})


def in_child(action: Attempt) -> Attempt:
    """For what may kill the process that tries it."""

    def run() -> object:
        pid = os.fork()
        if pid == 0:
            try:
                action()
                os._exit(0)
            except BaseException:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if status:
            raise HarmlessError(f"ended with {os.waitstatus_to_exitcode(status)}")
        return "survived"

    return run


def call(number: int | dict[str, int], *arguments: object) -> Attempt:
    """A raw system call."""

    def run() -> int:
        value = number[MACHINE] if isinstance(number, dict) else number
        result = LIBC.syscall(ctypes.c_long(value), *arguments)
        if result < 0:
            code = ctypes.get_errno()
            if code in (errno.EINVAL, errno.EFAULT, errno.EBADF):
                return code  # the kernel looked at the arguments: the filter let the call through
            raise OSError(code, os.strerror(code))
        return result

    return run


def read(path: str, size: int = 64) -> Attempt:
    """Read something."""

    def run() -> bytes:
        with open(path, "rb") as file:
            data = file.read(size)
        if not data:
            raise HarmlessError("empty")
        return data

    return run


def write(path: str) -> Attempt:
    """Make or change a file."""

    def run() -> int:
        with open(path, "wb") as file:
            return file.write(b"x")

    return run


def connect(family: int, address: object, kind: int = socket.SOCK_STREAM) -> Attempt:
    """Reach a socket."""

    def run() -> str:
        with socket.socket(family, kind) as dialler:
            dialler.settimeout(TARGETS.get("try_s", 2))
            try:
                dialler.connect(address)
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:
                    raise
                return connect(family, address, socket.SOCK_SEQPACKET)()
        return "connected"

    return run


def network() -> None:
    for address in TARGETS["addresses"]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        attempt("network", f"host tcp {address}", connect(family, (address, TARGETS["tcp_port"])))
        attempt("network", f"host udp {address}", connect_udp(family, address))
    for name, address in {"metadata": "169.254.169.254", "internet": "192.0.2.1", "dns": "8.8.8.8"}.items():
        attempt("network", f"{name} {address}", connect(socket.AF_INET, (address, 53)))
        attempt("network", f"{name} udp", connect_udp(socket.AF_INET, address))
    for name, address in TARGETS.get("others", {}).items():
        attempt("network", f"{name} tcp", connect(socket.AF_INET, (address, TARGETS["tcp_port"])))
        attempt("network", f"{name} udp", connect_udp(socket.AF_INET, address))
    for name in TARGETS.get("mates", ()):
        attempt(
            "network",
            "crew mate by its name",
            lambda name=name: named(name, TARGETS["tcp_port"]),
            allowed=True,
        )
    for service, port in {"redis": 6379, "postgres": 5432, "docker": 2375, "ssh": 22}.items():
        attempt("network", f"localhost {service}", connect(socket.AF_INET, ("127.0.0.1", port)))
    attempt("network", "host abstract socket", connect(socket.AF_UNIX, "\0" + TARGETS["abstract"]))
    attempt("network", "resolve a name", lambda: socket.getaddrinfo("example.com", 80))
    attempt("network", "raw icmp", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
    attempt("network", "ping socket", ping)
    for name, family in {
        "packet": 17,
        "netlink": 16,
        "vsock": 40,
        "alg": 38,
        "bluetooth": 31,
        "tipc": 30,
    }.items():
        attempt(
            "network", f"socket family {name}", lambda family=family: socket.socket(family, socket.SOCK_RAW)
        )
    attempt("network", "add an address", add_address)


def named(name: str, port: int) -> str:
    """A mate, as an agent's code would reach it."""
    with socket.create_connection((name, port), timeout=5) as mate:
        return mate.recv(99).decode()


def connect_udp(family: int, address: str) -> Attempt:
    def run() -> int:
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sent = sender.sendto(b"x", (address, TARGETS["tcp_port"]))
        if TARGETS.get("others"):  # on a network of the crew's a datagram leaves; the test looks who got it
            raise HarmlessError("sent into a network that is closed")
        return sent

    # The sandbox's own loopback takes any datagram; the test looks whether it arrived on the host.
    if address.startswith("127.") or address == "::1":

        def loop() -> int:
            run()
            raise HarmlessError("own loopback")

        return loop
    return run


def ping() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sender:
        return sender.sendto(b"\x08\x00\x00\x00\x00\x00\x00\x00", (TARGETS["addresses"][-1], 0))


def add_address() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = b"lo".ljust(16, b"\0") + b"\x02\x00\x00\x00\x0a\x00\x00\x01" + b"\0" * 16
        return fcntl.ioctl(control, 0x8916, request)


def sockets() -> None:
    for name, path in TARGETS["sockets"].items():
        attempt("sockets", name, connect(socket.AF_UNIX, path))
        attempt("sockets", f"{name} through /proc/1/root", connect(socket.AF_UNIX, f"/proc/1/root{path}"))
    attempt("sockets", "own control", connect(socket.AF_UNIX, "/run/hf/own/ctl.sock"))
    if TARGETS["sealed"]:
        attempt(
            "sockets", "plant a link in own", lambda: os.symlink("/var/run/docker.sock", "/run/hf/own/x.sock")
        )
        attempt("sockets", "replace own service", lambda: os.unlink("/run/hf/own/svc.sock"))
        attempt("sockets", "fill own", write("/run/hf/own/fill"))
        attempt("sockets", "open own", lambda: os.chmod("/run/hf/own", 0o777))
    attempt("sockets", "plant in peers", lambda: os.symlink("/", "/run/hf/peers/x.sock"))
    attempt("sockets", "unlink a peer", lambda: os.unlink("/run/hf/peers/mate.sock"))
    attempt("sockets", "strangers among peers", strangers)
    attempt("sockets", "crew mate", connect(socket.AF_UNIX, "/run/hf/peers/mate.sock"), allowed=True)
    attempt("sockets", "own service", connect(socket.AF_UNIX, "/run/hf/own/svc.sock"), allowed=True)


def strangers() -> list[str]:
    names = sorted(set(os.listdir("/run/hf/peers")) - {"mate.sock"})
    if not names:
        raise HarmlessError("none")
    return names


def processes() -> None:
    for name, pid in TARGETS["pids"].items():
        attempt("processes", f"signal {name}", lambda pid=pid: os.kill(pid, 0))
        attempt("processes", f"look at {name}", read(f"/proc/{pid}/cmdline"))
    attempt("processes", "see others", others)
    for pid in TARGETS.get("guarded_pids", (1, 2)) or (os.getppid(),):
        for part in ("mem", "environ", "maps", "fd/1", "root/etc/passwd", "cwd/."):
            attempt("processes", f"/proc/{pid}/{part}", read(f"/proc/{pid}/{part}"))
        attempt("processes", f"see open files of {pid}", lambda pid=pid: open_files(pid))
        attempt("processes", f"ptrace {pid}", call({"x86_64": 101, "aarch64": 117}, 16, pid, 0, 0))
        attempt(
            "processes", f"process_vm_readv {pid}", call({"x86_64": 310, "aarch64": 270}, pid, 0, 0, 0, 0, 0)
        )
        attempt("processes", f"pidfd_getfd {pid}", lambda pid=pid: call(438, os.pidfd_open(pid), 1, 0)())
        for kind in ("mnt", "net", "user", "pid"):
            attempt("processes", f"setns {kind} of {pid}", lambda pid=pid, kind=kind: enter(pid, kind))
    attempt("processes", "kill the reaper", kill_reaper)
    attempt(
        "processes", "host's shared memory", call({"x86_64": 29, "aarch64": 194}, TARGETS["shm_key"], 0, 0)
    )


def open_files(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]


def kill_reaper() -> str:
    os.kill(1, signal.SIGKILL)
    raise HarmlessError("pid 1 ignores it")


def enter(pid: int, kind: str) -> int:
    fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
    return call({"x86_64": 308, "aarch64": 268}, fd, 0)()


def others() -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    strange = [pid for pid in pids if pid > 4096]
    if not strange:
        raise HarmlessError(f"only {pids}")
    return strange


def reading() -> None:
    for path in TARGETS["files"]:
        attempt("files", f"read {path}", read(path))
        attempt("files", f"read {path} by climbing", read("/workspace/" + "../" * 20 + path))
    for path in ("/dev/vda", "/dev/sda", "/dev/mem", "/dev/kmsg", "/dev/fuse", "/dev/kvm", "/dev/net/tun"):
        attempt("files", f"open {path}", read(path))
    for path in ("/sys/kernel", "/sys/fs/cgroup", "/.host", "/home", "/var/lib", "/mnt"):
        attempt("files", f"list {path}", lambda path=path: os.listdir(path) or empty())


def writing() -> None:
    places = [
        "/",
        "/usr",
        "/usr/bin",
        "/app",
        "/app/src",
        "/etc",
        "/run",
        "/run/hf",
        "/dev",
        "/skills",
        "/proc",
        "/.host",
    ]
    for path in places:
        attempt("files", f"write in {path}", write(f"{path}/evil"))
    for path in [sys.executable, json.__file__, "/etc/passwd", "/etc/resolv.conf", "/bin/sh"]:
        attempt("files", f"change {path}", lambda path=path: open(path, "r+b").close())
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname"):
        attempt("files", f"write {path}", write(path))
    attempt(
        "files", "device node", lambda: os.mknod("/workspace/sda", stat.S_IFBLK | 0o600, os.makedev(253, 0))
    )
    attempt(
        "files",
        "char device node",
        lambda: os.mknod("/workspace/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
    )
    attempt("files", "open by handle", call({"x86_64": 304, "aarch64": 265}, -1, 0, 0))
    attempt(
        "files", "hard link to a peer", lambda: os.link("/run/hf/peers/mate.sock", "/workspace/mate.sock")
    )


def empty() -> None:
    raise HarmlessError("empty")


def privileges() -> None:
    attempt("privileges", "setuid 0", lambda: os.setuid(0))
    attempt("privileges", "setuid of another agent", lambda: os.setresuid(200_000, 200_000, 200_000))
    attempt("privileges", "setgid 0", lambda: os.setgid(0))
    attempt("privileges", "setgroups", lambda: os.setgroups([0]))
    attempt("privileges", "chown to root", lambda: chown_to_root())
    attempt("privileges", "setuid program", setuid_program)
    attempt("privileges", "chroot", lambda: os.chroot("/workspace"))
    attempt("privileges", "mount tmpfs", mount(b"tmpfs", b"/workspace", b"tmpfs", 0))
    attempt("privileges", "bind /", mount(b"/", b"/workspace", None, 0x1000))
    attempt("privileges", "remount / writable", mount(None, b"/", None, 0x20 | 0x1000))
    attempt("privileges", "remount peers writable", mount(None, b"/run/hf/peers", None, 0x20 | 0x1000))
    attempt("privileges", "umount /proc", call({"x86_64": 166, "aarch64": 39}, b"/proc", 2))
    attempt("privileges", "umount /run/hf/own", call({"x86_64": 166, "aarch64": 39}, b"/run/hf/own", 2))
    flags = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "time": 0x80}
    for name, flag in flags.items():
        attempt("privileges", f"unshare {name}", in_child(call({"x86_64": 272, "aarch64": 97}, flag)))
        attempt("privileges", f"clone {name}", clone(flag))
    attempt("privileges", "clone3", call(435, 0, 0))
    for name, value in SYSCALLS.items():
        attempt("privileges", name, in_child(call(value, 0, 0, 0, 0, 0, 0)))
    attempt("privileges", "seccomp off", seccomp_state)
    attempt("privileges", "x32 call", in_child(lambda: LIBC.syscall(ctypes.c_long(0x40000000 | 39))))
    attempt("privileges", "terminal injection", lambda: fcntl.ioctl(0, 0x5412, b"x"))
    attempt("privileges", "raise a hard limit", raise_limit)
    attempt(
        "privileges", "real-time priority", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    )
    attempt("privileges", "negative nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -10))
    attempt("privileges", "escape the oom killer", escape_oom)
    attempt("privileges", "hostname", lambda: socket.sethostname("evil"))
    attempt("privileges", "clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
    attempt("privileges", "capabilities", capabilities)
    attempt("privileges", "write to executable memory of a file", lambda: mmap_code())


SYSCALLS = {
    "bpf": {"x86_64": 321, "aarch64": 280},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "add_key": {"x86_64": 248, "aarch64": 217},
    "perf_event_open": {"x86_64": 298, "aarch64": 241},
    "userfaultfd": {"x86_64": 323, "aarch64": 282},
    "init_module": {"x86_64": 175, "aarch64": 105},
    "finit_module": {"x86_64": 313, "aarch64": 273},
    "kexec_load": {"x86_64": 246, "aarch64": 104},
    "pivot_root": {"x86_64": 155, "aarch64": 41},
    "swapon": {"x86_64": 167, "aarch64": 224},
    "syslog": {"x86_64": 103, "aarch64": 116},
    "fanotify_init": {"x86_64": 300, "aarch64": 262},
    "personality": {"x86_64": 135, "aarch64": 92},
    "quotactl": {"x86_64": 179, "aarch64": 60},
    "acct": {"x86_64": 163, "aarch64": 89},
    "io_uring_setup": 425,
    "open_tree": 428,
    "fsopen": 430,
    "mount_setattr": 442,
    "memfd_secret": 447,
}  # fmt: skip


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int) -> Attempt:
    def run() -> str:
        if LIBC.mount(source, target, kind, ctypes.c_ulong(flags), None) < 0:
            raise OSError(ctypes.get_errno(), "mount")
        return "mounted"

    return run


def clone(flag: int) -> Attempt:
    def run() -> int:
        pid = LIBC.syscall(ctypes.c_long({"x86_64": 56, "aarch64": 220}[MACHINE]), flag | 17, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "clone")
        os.waitpid(pid, 0)
        if flag == 0x80:
            raise HarmlessError("clone takes no time namespace: these bits are the exit signal")
        return pid

    return run


def chown_to_root() -> None:
    open("/workspace/chown", "w").close()
    os.chown("/workspace/chown", 0, 0)


def setuid_program() -> str:
    if os.path.exists("/usr/bin/su"):
        subprocess.run(
            ["/usr/bin/su", "-c", "id"], stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=True
        )
        return "su"
    raise HarmlessError("no setuid program")


def seccomp_state() -> str:
    status = open("/proc/self/status").read()
    if "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status:
        raise HarmlessError("filter on")
    return status


def raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard + 1))


def escape_oom() -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def capabilities() -> str:
    held = [line for line in open("/proc/self/status") if line.startswith("Cap") and int(line.split()[1], 16)]
    if not held:
        raise HarmlessError("none")
    return str(held)


def mmap_code() -> None:
    with open(sys.executable, "rb") as file:
        mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def resources() -> None:
    attempt("resources", "fork bomb", fork_bomb)
    for place in ("/workspace", "/tmp", "/dev/shm"):
        attempt("resources", f"fill {place}", lambda place=place: fill(place))
        attempt("resources", f"many files in {place}", lambda place=place: many_files(place))
    attempt("resources", "memory bomb", in_child(memory_bomb))
    if TARGETS["cpu_limited"]:
        attempt("resources", "burn two cores", burn)


def fork_bomb() -> int:
    children = []
    try:
        for _ in range(TARGETS["pids_max"] * 4):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
        return len(children)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def fill(place: str) -> int:
    written = 0
    names = [f"{place}/fill{number}" for number in range(8)]
    try:
        for name in names:
            with open(name, "wb", buffering=0) as file:
                for _ in range(TARGETS["workspace_bytes"] // 2 // 65536):
                    written += file.write(b"\0" * 65536)
        return written
    finally:
        for name in names:
            if os.path.exists(name):
                os.unlink(name)


def many_files(place: str) -> int:
    count = 0
    try:
        for count in range(200_000):
            open(f"{place}/n{count}", "w").close()
        return count
    finally:
        for name in glob.glob(f"{place}/n*"):
            os.unlink(name)


def memory_bomb() -> None:
    blocks = []
    for _ in range(64):
        block = bytearray(TARGETS["memory_bytes"] // 16)
        blocks.append(block)


def burn() -> str:
    burners = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            while True:
                pass
        burners.append(pid)
    started = time.monotonic()
    while time.monotonic() - started < 1.0:
        os.sched_yield()
    before = os.times()
    for pid in burners:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    used += after.user + after.system
    share = used / (time.monotonic() - started)
    if share <= TARGETS["cpu_share"] * 1.6:
        raise HarmlessError(f"{share:.2f} of a core")
    return f"{share:.2f} of a core"


if TARGETS:
    for area in (network, sockets, processes, reading, writing, privileges, resources):
        if area.__name__ in TARGETS["areas"]:
            area()
    print(json.dumps(TABLE))
