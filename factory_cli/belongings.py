"""Look at everything a stack made: on the host, in the store, on the bus, at the gateway."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from embedded.postgres import EmbeddedPostgres
from embedded.process import is_running
from embedded.valkey import EmbeddedValkey
from factory_cli import local
from factory_server.bus.keys import USER
from factory_server.core.errors import Unavailable
from factory_server.drivers.docker import survey
from factory_server.drivers.namespaces import launcher
from factory_server.drivers.namespaces.records import Records, stem

CONNECT_WITHIN_S = 3
FORK_SERVER = b"factory_server.drivers.namespaces.zygote"
_CREW_NAME = re.compile(rb"crew-([a-z0-9]+)\\*\.svc")
_LIVE = "SELECT id FROM crew WHERE state NOT IN ('DISBANDED', 'FAILED')"
_GENERATIONS = """
SELECT a.id || '-g' || a.generation FROM agent a JOIN crew c ON c.id = a.crew
 WHERE c.state NOT IN ('DISBANDED', 'FAILED') AND a.state <> 'STOPPED'"""
_OWNED = """
SELECT i.id FROM instance i LEFT JOIN agent a ON a.id = i.agent LEFT JOIN crew c ON c.id = a.crew
 WHERE c.id IS NULL OR c.state NOT IN ('DISBANDED', 'FAILED')"""
_NETWORKS = """
SELECT n.id FROM network n LEFT JOIN crew c ON c.id = n.crew
 WHERE n.crew IS NULL OR c.state NOT IN ('DISBANDED', 'FAILED')"""
_AGENTS = """
SELECT a.id || ' ' || a.state FROM agent a JOIN crew c ON c.id = a.crew
 WHERE c.state IN ('DISBANDED', 'FAILED') AND a.state NOT IN ('STOPPED', 'FAILED')"""
_INSTANCES = """
SELECT i.id || ' ' || i.state FROM instance i JOIN agent a ON a.id = i.agent JOIN crew c ON c.id = a.crew
 WHERE c.state IN ('DISBANDED', 'FAILED')"""
_WORK = """
SELECT 'task ' || w.id FROM task w JOIN crew c ON c.id = w.crew
 WHERE w.ended_at IS NULL AND c.state IN ('DISBANDED', 'FAILED')
UNION ALL
SELECT 'broadcast ' || w.id FROM broadcast w JOIN crew c ON c.id = w.crew
 WHERE w.done_at IS NULL AND c.state IN ('DISBANDED', 'FAILED')"""


@dataclass(slots=True)
class Belongings:
    """What has no owner, by kind; `absent` names the parts that did not answer, and why."""

    live_crews: set[str] = field(default_factory=set)
    generations: set[str] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)
    owned_networks: set[str] = field(default_factory=set)
    processes: Sequence[str] = ()
    fork_servers: Sequence[str] = ()
    containers: Sequence[str] = ()
    networks: Sequence[str] = ()
    mounts: Sequence[str] = ()
    files: Sequence[str] = ()
    agents: Sequence[str] = ()
    instances: Sequence[str] = ()
    work: Sequence[str] = ()
    bus_users: Sequence[str] = ()
    bus_keys: Sequence[str] = ()
    routes: Sequence[str] = ()
    absent: dict[str, str] = field(default_factory=dict)


async def look(home: Path) -> Belongings:
    """Look everywhere. The host is looked at first: what is created meanwhile is then owned already."""
    found, home = Belongings(), await asyncio.to_thread(home.resolve)
    host = await asyncio.to_thread(_Host.see, home)
    containers, networks = await _look_at_engine(found, home)
    await _look_at_store(found, home)
    await _look_at_bus(found, home)
    await _look_at_gateway(found, home)
    host.judge(found)
    found.containers = [
        f"{c.instance} ({c.id}, {c.state})" for c in containers if c.instance not in found.owned
    ]
    found.networks = [network for network in networks if network not in found.owned_networks]
    return found


async def _look_at_engine(found: Belongings, home: Path) -> tuple[Sequence[survey.Container], Sequence[str]]:
    try:
        containers = await asyncio.to_thread(survey.containers_of, home)
        return containers, await asyncio.to_thread(survey.networks_of, home)
    except Unavailable as error:
        found.absent["docker"] = error.message
        return (), ()


async def _look_at_store(found: Belongings, home: Path) -> None:
    if not await asyncio.to_thread(is_running, home, "postgres"):
        found.absent["postgres"] = "Postgres is not running"
        return
    try:
        connecting = psycopg.AsyncConnection.connect(
            EmbeddedPostgres(home).url, autocommit=True, connect_timeout=CONNECT_WITHIN_S
        )
        async with await connecting as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            found.live_crews = set(await _column(connection, _LIVE))
            found.generations = set(await _column(connection, _GENERATIONS))
            found.owned = set(await _column(connection, _OWNED))
            found.owned_networks = set(await _column(connection, _NETWORKS))
            found.agents = await _column(connection, _AGENTS)
            found.instances = await _column(connection, _INSTANCES)
            found.work = await _column(connection, _WORK)
    except psycopg.Error as error:
        found.absent["postgres"] = f"Postgres does not answer: {error}"


async def _column(connection: psycopg.AsyncConnection[tuple[str, ...]], query: str) -> list[str]:
    cursor = await connection.execute(query.encode())
    return [row[0] for row in await cursor.fetchall()]


async def _look_at_bus(found: Belongings, home: Path) -> None:
    if not await asyncio.to_thread(is_running, home, "valkey"):
        found.absent["valkey"] = "Valkey is not running"
        return
    bus = Redis.from_url(
        EmbeddedValkey(home).url,
        decode_responses=True,
        socket_timeout=CONNECT_WITHIN_S,
        socket_connect_timeout=CONNECT_WITHIN_S,
    )
    try:
        users = [str(name) for name in await bus.acl_users()]
        keys = [str(key) async for key in bus.scan_iter(match="crew*", count=1_000)]
    except (RedisError, OSError) as error:
        found.absent["valkey"] = f"Valkey does not answer: {error}"
        return
    finally:
        await bus.aclose()
    found.bus_users = [name for name in users if name.startswith("crew-") and not _serves(name, found)]
    found.bus_keys = [key for key in keys if key.split(":")[1] not in found.live_crews]


def _serves(user: str, found: Belongings) -> bool:
    """Whether a bus user is that of an agent's present generation."""
    parts = USER.match(user)
    return parts is not None and f"{parts[2]}-g{parts[3]}" in found.generations


async def _look_at_gateway(found: Belongings, home: Path) -> None:
    port = (await asyncio.to_thread(local.ports, home)).get("gateway_metrics", 0)
    if not port or not await asyncio.to_thread(is_running, home, "gateway"):
        found.absent["gateway"] = "the gateway is not running"
        return
    try:
        answer = await local.get(port, "/routes")
    except (OSError, TimeoutError) as error:
        found.absent["gateway"] = f"the gateway does not answer: {error}"
        return
    if answer.status != 200:
        found.absent["gateway"] = f"the gateway answers {answer.status}"
        return
    named = {match.decode() for match in _CREW_NAME.findall(answer.body)}
    found.routes = sorted(f"crew-{crew}.svc" for crew in named - found.live_crews)


@dataclass(slots=True)
class _Host:
    """What was seen on the host: (instance or empty, what) pairs."""

    sandboxes: list[tuple[str, int]]
    children: list[int]
    fork_servers: list[int]
    mounts: list[str]
    files: list[tuple[str, str]]
    doors: list[tuple[str, str]]
    """(crew, path) of each socket that leads out."""

    @classmethod
    def see(cls, home: Path) -> _Host:
        """Read /proc and the driver's directories."""
        where = launcher.places(home / "sandboxes")
        records = list(Records(where.state / "instances")) if where.state.exists() else []
        sandboxes = [(record.instance, record.pid) for record in records if record.alive()]
        fork_servers = _fork_servers(where.state, {pid for _, pid in sandboxes})
        return cls(
            sandboxes=sandboxes,
            children=[child for server in fork_servers for child in _children(server)],
            fork_servers=fork_servers,
            mounts=_mounts_below(home),
            files=list(_files(where)),
            doors=[(path.stem, str(path)) for path in sorted((where.sockets / "egress").glob("[!.]*.sock"))],
        )

    def judge(self, found: Belongings) -> None:
        """Say which of it nobody owns."""
        stems = {stem(instance) for instance in found.owned}
        known = {pid for _, pid in self.sandboxes}
        lost = [f"{name} (pid {pid})" for name, pid in self.sandboxes if name not in found.owned]
        found.processes = lost + [f"pid {child}" for child in self.children if child not in known]
        spare = self.fork_servers if "postgres" in found.absent else self.fork_servers[1:]
        found.fork_servers = [f"pid {pid}" for pid in spare]
        found.mounts = self.mounts
        doors = [path for crew, path in self.doors if crew not in found.live_crews]
        found.files = [path for name, path in self.files if name not in stems] + doors


def _fork_servers(state: Path, sandboxes: set[int]) -> list[int]:
    """Processes with the fork server's command line that are no forks of it: those keep the line."""
    family = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line, status = (process / "cmdline").read_bytes(), (process / "stat").read_text()
        except OSError:
            continue  # gone meanwhile
        if FORK_SERVER in line and b'"' + os.fsencode(state) + b'"' in line:
            family[int(process.name)] = int(status.rpartition(")")[2].split()[1])
    forks = sandboxes | family.keys()
    return [pid for pid, parent in family.items() if pid not in sandboxes and parent not in forks]


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def _mounts_below(home: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    return [str(point) for point in points if home in point.parents]


def _files(where: launcher.Places) -> Iterator[tuple[str, str]]:
    """Yield (stem, path) of everything that is named by an instance."""
    folders = [where.sockets / name for name in ("own", "peers", "ctl", "svc")]
    folders += [where.state / name for name in ("instances", "logs")]
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield path.name.split(".")[0], str(path)
