"""What every container gets, whatever runs in it: the whole of its configuration as one value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from factory_server.core.sandbox import Limits
from factory_server.drivers import bases
from factory_server.drivers.docker import seccomp

OWN: Final = "/run/hf/own"
PEERS: Final = "/run/hf/peers"
WORKSPACE: Final = "/workspace"
SKILLS: Final = "/skills"
HOSTS: Final = "/etc/hosts"
SRC: Final = "/app/src"
BASE: Final = bases.INSIDE

LABEL_FACTORY: Final = "hyperfactory.factory"
LABEL_INSTANCE: Final = "hyperfactory.instance"
LABEL_GIVEN: Final = "hyperfactory.labels"
LABEL_USER: Final = "hyperfactory.user"
_LABEL_COPIES: Final = ("crew", "agent", "generation", "pool")

LOG_FILE_BYTES: Final = 256 * 1024
LOG_FILES: Final = 2
_INODE_BYTES: Final = 2048
_OPEN_FILES: Final = 4096
_MEMLOCK_BYTES: Final = 64 * 1024
_OOM_SCORE: Final = 500  # under host pressure, agents go before the factory and its stores
_CPU_NANOS: Final = 1_000_000
# The engine's own list, and all of /sys: an agent needs none of it.
_MASKED: Final = (
    "/sys", "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/modules", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/proc/vmallocinfo",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """One container: who it is, what it may use, and its three directories on the host."""

    instance: str
    factory: str
    image: str
    user: int
    own: str
    peers: str
    limits: Limits
    labels: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    packages: Mapping[str, str] = field(default_factory=dict)  # shown over the image's own, for tests
    runtime: str = ""
    skills: str = ""
    hosts: str = ""
    base: str = ""


def container(wish: Wish) -> dict[str, Any]:
    """The body of the engine's `create`."""
    body: dict[str, Any] = {
        "Image": wish.image,
        "User": f"{wish.user}:{wish.user}",
        "Hostname": "agent",
        "WorkingDir": WORKSPACE,
        "NetworkDisabled": False,
        "OpenStdin": False,
        "Tty": False,
        "Labels": labels(wish),
        "Healthcheck": {
            "Test": ["NONE"]
        },  # each check would be a process; the factory holds a stream instead
        "HostConfig": _host(wish),
    }
    if wish.command:
        body["Cmd"] = list(wish.command)
    return body


def labels(wish: Wish) -> dict[str, str]:
    """Ours, for adoption and sweeping, with copies for people who look."""
    given = {f"hyperfactory.{name}": wish.labels[name] for name in _LABEL_COPIES if name in wish.labels}
    return {
        **given,
        LABEL_FACTORY: wish.factory,
        LABEL_INSTANCE: wish.instance,
        LABEL_USER: str(wish.user),
        LABEL_GIVEN: json.dumps(dict(wish.labels), sort_keys=True),
    }


def _host(wish: Wish) -> dict[str, Any]:
    """`UsernsMode` is left out on purpose: naming it could only switch user namespaces off."""
    limits, defaults = wish.limits, Limits()
    memory = limits.memory_bytes or defaults.memory_bytes
    workspace = limits.workspace_bytes or defaults.workspace_bytes
    host: dict[str, Any] = {
        "NetworkMode": "none",
        "Dns": ["127.0.0.1"],
        "DnsOptions": ["timeout:1", "attempts:2"],  # nobody answers for names outside: say so soon
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp.text()}"],
        "MaskedPaths": list(_MASKED),
        "Tmpfs": {place: _tmpfs(workspace, wish.user) for place in (WORKSPACE, "/tmp")},
        "Mounts": [
            _bind(wish.own, OWN, read_only=False),
            _bind(wish.peers, PEERS, read_only=True),
            *([_bind(wish.skills, SKILLS, read_only=True)] if wish.skills else []),
            *([_bind(wish.hosts, HOSTS, read_only=True)] if wish.hosts else []),
        ]
        + [_bind(source, f"{SRC}/{name}", read_only=True) for name, source in wish.packages.items()]
        + ([_bind(wish.base, BASE, read_only=True)] if wish.base else []),
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": limits.pids_max or defaults.pids_max,
        "NanoCpus": (limits.cpu_millis or defaults.cpu_millis) * _CPU_NANOS,
        "OomScoreAdj": _OOM_SCORE,
        "Ulimits": [_ulimit("nofile", _OPEN_FILES), _ulimit("core", 0), _ulimit("memlock", _MEMLOCK_BYTES)],
        "Init": True,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": str(LOG_FILE_BYTES), "max-file": str(LOG_FILES)},
        },
    }
    if wish.runtime:
        host["Runtime"] = wish.runtime
    return host


def _tmpfs(size: int, user: int) -> str:
    inodes = max(size // _INODE_BYTES, 64)
    return f"rw,nosuid,nodev,exec,size={size},nr_inodes={inodes},mode=0700,uid={user},gid={user}"


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def entry_command(entry: str) -> list[str]:
    """What runs: a module as a program, or `module:function` as the fork server calls it."""
    module, _, function = entry.partition(":")
    if not function:
        return ["python", "-m", module, "--own", OWN, "--peers", PEERS, "--workspace", WORKSPACE]
    # As the runtime does itself: tools of the agent must not read the memory that holds its key.
    source = (
        f"import ctypes, os; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); from {module} import {function}; "
        f"{function}({OWN!r}, {PEERS!r}, {WORKSPACE!r}, os.open(os.devnull, os.O_WRONLY))"
    )
    return ["python", "-c", source]
