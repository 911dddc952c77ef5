"""An adversary in one crew's sandbox, another crew beside it: nothing it must not reach answers."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from factory_server.core.sandbox import Driver, DriverInfo, Enforcement, Limits, Sandbox, SandboxSpec, Tier
from factory_server.drivers.namespaces import launcher
from factory_server.drivers.namespaces.driver import NamespacesDriver
from tests.acceptance.isolation import table as isolation
from tests.contract.small_agent import ask

LIMITS = Limits(memory_bytes=192 * 1024 * 1024, pids_max=48, cpu_millis=500, workspace_bytes=8 * 1024 * 1024)
DEADLINE_S = 10.0
AREAS = ["network", "sockets", "processes", "reading", "writing", "privileges", "resources"]
SHM_KEY = 0x48461
MARKER = "marker-" + secrets.token_hex(16)


@dataclass
class Crews:
    """Red has the adversary and a mate; blue has the victim."""

    driver: Driver
    info: DriverInfo
    state: Path
    evil: Sandbox
    mate: Sandbox
    victim: Sandbox
    victim_service: str
    where: launcher.Places
    addresses: dict[str, str] = field(default_factory=dict)
    """Of members and gateways, where crews have networks of their own."""


@pytest.fixture
async def crews() -> AsyncIterator[Crews]:
    with tempfile.TemporaryDirectory(prefix="hfi") as name:
        state = Path(name)
        driver = NamespacesDriver(
            state, factory=state.name, entry="tests.contract.small_agent:run", packages=("tests",)
        )
        await driver.start()
        made = [await driver.create(SandboxSpec(n, limits=LIMITS), deadline_s=DEADLINE_S) for n in
                ("evil-g1", "mate-g1", "victim-g1")]  # fmt: skip
        services = {sandbox.instance: await driver.publish(sandbox.instance) for sandbox in made}
        await driver.wire("evil-g1", {"mate.sock": services["mate-g1"].removeprefix("unix://")})
        await driver.wire("mate-g1", {"evil.sock": services["evil-g1"].removeprefix("unix://")})
        service, where = services["victim-g1"], driver._files.where
        yield Crews(driver, await driver.probe(), state, *made, victim_service=service, where=where)
        await driver.terminate()


def host_addresses() -> list[str]:
    """Every address of this host, loopback included."""
    out = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    return ["127.0.0.1", *out]


@pytest.fixture
def listeners() -> Iterator[dict[str, Any]]:
    """What a host offers by accident: a service on all addresses, an abstract socket, shared memory."""
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        port = tcp.getsockname()[1]
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("0.0.0.0", port))
        abstract = f"hf-{secrets.token_hex(8)}"
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("\0" + abstract)
        unix.listen()
        for listener in (tcp, udp, unix):
            listener.setblocking(False)
        libc = ctypes.CDLL(None)
        memory = libc.shmget(SHM_KEY, 4096, 0o1666)
        stack.callback(libc.shmctl, memory, 0, None)
        yield {"port": port, "abstract": abstract, "listeners": (tcp, udp, unix)}


def targets(crews: Crews, listeners: dict[str, Any], files: list[str]) -> dict[str, Any]:
    """What the adversary is told: every host path and number, as if it had found them out."""
    where = crews.where
    found = {p.name: p for p in crews.info.properties}
    return {
        "areas": AREAS,
        "addresses": host_addresses(),
        "tcp_port": listeners["port"],
        "abstract": listeners["abstract"],
        "sockets": {
            "victim's service": crews.victim_service.removeprefix("unix://"),
            "victim's control": crews.victim.control.removeprefix("unix://"),
            "own control on the host": crews.evil.control.removeprefix("unix://"),
            "fork server": str(where.fork_server),
            "docker": "/var/run/docker.sock",
            "redis": "/var/run/redis/redis.sock",
            "postgres": "/var/run/postgresql/.s.PGSQL.5432",
        },
        "sealed": found["sealed_socket_directory"].enforcement is Enforcement.ENFORCED,
        "pids": {"victim": crews.victim.host_pid, "test": os.getpid()},
        "files": ["/etc/shadow", "/etc/hostname", "/root/.bashrc", "/etc/ssh/sshd_config", *files],
        "shm_key": SHM_KEY,
        "pids_max": LIMITS.pids_max,
        "memory_bytes": LIMITS.memory_bytes,
        "workspace_bytes": LIMITS.workspace_bytes,
        "cpu_limited": found["cpu_limit"].enforcement is Enforcement.ENFORCED,
        "cpu_share": LIMITS.cpu_millis / 1000,
    }


def arrived(listeners: dict[str, Any]) -> list[str]:
    """Connections and datagrams that reached the host."""
    found = []
    for listener in listeners["listeners"]:
        with contextlib.suppress(BlockingIOError):
            listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()
            found.append(str(listener))
    return found


def adversary(wish: dict[str, Any]) -> str:
    """The hostile program with its targets."""
    program = Path(__file__).with_name("adversary.py").read_text()
    return program.replace("TARGETS: dict =", f"TARGETS = {wish!r}\nTARGETS: dict =", 1)


async def test_the_attempts_succeed_where_nothing_stands_in_their_way(
    crews: Crews, listeners: dict[str, Any], tmp_path: Path
) -> None:
    """The adversary is a real one: outside a sandbox, its harmless attempts work."""
    wish = targets(crews, listeners, [__file__]) | {"areas": ["sockets", "reading"]}
    run = asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", adversary(wish)],
        capture_output=True,
        cwd=tmp_path,
        check=True,
        timeout=30,
    )
    worked = {row["attempt"] for row in json.loads((await run).stdout) if row["worked"]}
    expected = {"victim's service", "victim's control", "fork server", f"read {__file__}", "list /sys/kernel"}
    assert expected <= worked


async def test_zero_unauthorized_successes(crews: Crews, listeners: dict[str, Any], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    hidden = [str(secret), str(crews.state), str(crews.state / "instances/victim-g1.json"), __file__]
    program = adversary(targets(crews, listeners, hidden))
    answer = await ask(
        crews.evil.control, {"do": "run", "source": program, "deadline_s": 50.0}, deadline_s=55.0
    )
    assert answer["code"] == 0, answer["err"]
    table = json.loads(answer["out"])
    print(json.dumps(table, indent=1))  # noqa: T201 - the report
    assert len(table) > 150
    assert [row for row in table if row["worked"] != row["allowed"]] == []
    isolation.hold(f"namespaces, {crews.info.tier.value}", table)
    assert arrived(listeners) == []
    for other in (crews.mate, crews.victim):
        assert "pid" in await ask(other.control, {"do": "ping"})
    assert "pid" in await ask(crews.evil.control, {"do": "ping"}), "it may only hurt its own tools"


async def test_crews_keep_their_own_places(crews: Crews) -> None:
    """The same path, two crews, two files; and no trace of the other's."""
    save = "open('/workspace/note', 'w').write('blue'); open('/tmp/note', 'w').write('blue')"
    assert (await ask(crews.victim.control, {"do": "run", "source": save}))["code"] == 0
    look = "import os; print([p for p in ('/workspace/note', '/tmp/note', '/dev/shm/note') if os.path.exists(p)])"
    assert (await ask(crews.mate.control, {"do": "run", "source": look}))["out"] == "[]\n"


async def test_nothing_is_left_after_destroy(crews: Crews) -> None:
    """A marker in every place that can be written is found nowhere afterwards."""
    places = ["/workspace", "/tmp", "/dev/shm"]
    if crews.info.tier is not Tier.FULL:
        places.append("/run/hf/own")
    source = f"""
import os
for place in {places!r}:
    os.makedirs(place + '/deep/er', exist_ok=True)
    for name in ('/.hidden', '/deep/er/file'):
        with open(place + name, 'w') as file:
            file.write({MARKER!r})
print('{MARKER}')
"""
    answer = await ask(crews.evil.control, {"do": "run", "source": source})
    assert answer["code"] == 0, answer["err"]
    await ask(crews.evil.control, {"do": "print", "text": MARKER})
    assert holders(crews), "the search itself must be able to find it"
    await crews.driver.destroy("evil-g1")
    assert holders(crews) == []
    again = await crews.driver.create(SandboxSpec("evil-g1", limits=LIMITS), deadline_s=DEADLINE_S)
    look = "import os; print(sorted(n for p in ('/workspace', '/tmp', '/dev/shm') for n in os.listdir(p)))"
    assert (await ask(again.control, {"do": "run", "source": look}))["out"] == "['program.py']\n"


def holders(crews: Crews) -> list[str]:
    """Files that hold the marker: on the host, and in every living sandbox as the host sees it."""
    pids = [sandbox.host_pid for sandbox in (crews.evil, crews.mate, crews.victim)]
    inside = [
        f"/proc/{pid}/root/{place}" for pid in pids for place in ("workspace", "tmp", "dev/shm", "run/hf")
    ]
    roots = [str(crews.state), "/dev/shm", "/run", "/var/tmp", *inside]
    existing = [root for root in roots if Path(root).exists()]
    found = subprocess.run(
        ["grep", "-rlF", "--devices=skip", "--exclude-dir=user", MARKER, *existing],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split()
