"""The embedded Postgres keeps its rows and its address through adoption, restart and kill -9."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg
import pytest

from embedded.paths import HOME_MAX_CHARS, forget_socket_dir
from embedded.postgres import POSTGRES_UID, EmbeddedPostgres


async def ask(url: str, query: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(query)
        return await cursor.fetchall() if cursor.description else []


def postmaster(home: Path) -> int:
    return int((home / "postgres/data/postmaster.pid").read_text().split()[0])


def identity_and_view(pid: int) -> tuple[dict[str, str], set[str]]:
    """Return a process's status fields, and what it finds in its root and its /etc."""
    status = Path(f"/proc/{pid}/status").read_text()
    root = Path(f"/proc/{pid}/root")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return fields, {str(path.relative_to(root)) for path in (*root.iterdir(), *(root / "etc").iterdir())}


async def test_a_second_launcher_adopts_the_running_server(home: Path) -> None:
    first, second = EmbeddedPostgres(home), EmbeddedPostgres(home)
    url = await first.start()
    pid = postmaster(home)
    assert await second.start() == url
    assert postmaster(home) == pid
    await second.stop()


async def test_rows_survive_kill_9_of_the_postmaster(home: Path) -> None:
    postgres = EmbeddedPostgres(home)
    url = await postgres.start()
    await ask(url, "CREATE TABLE kept (n int)")
    await ask(url, "INSERT INTO kept SELECT generate_series(1, 100)")
    killed = postmaster(home)
    os.kill(killed, signal.SIGKILL)
    again = EmbeddedPostgres(home)
    assert await again.start() == url
    assert postmaster(home) != killed
    assert await ask(url, "SELECT count(*) FROM kept") == [(100,)]
    await again.stop()


async def test_a_pid_file_whose_pid_now_belongs_to_another_program_is_no_obstacle(home: Path) -> None:
    postgres = EmbeddedPostgres(home)
    await postgres.start()
    file = home / "postgres/data/postmaster.pid"
    text = file.read_text()
    await postgres.stop()
    file.write_text(text.replace(text.split()[0], str(os.getpid()), 1))
    assert await ask(await postgres.start(), "SELECT 1") == [(1,)]
    await postgres.stop()


async def test_an_interrupted_initdb_is_begun_anew(home: Path) -> None:
    (home / "postgres/data.new").mkdir(parents=True)
    (home / "postgres/data.new/PG_VERSION").write_text("half")
    if os.geteuid() == 0:
        for path in (home / "postgres", home / "postgres/data.new", home / "postgres/data.new/PG_VERSION"):
            os.chown(path, POSTGRES_UID, POSTGRES_UID)
    postgres = EmbeddedPostgres(home)
    assert await ask(await postgres.start(), "SELECT 1") == [(1,)]
    await postgres.stop()


async def test_a_deep_home_still_has_a_short_socket(home: Path) -> None:
    deep = home / ("d" * HOME_MAX_CHARS) / ("e" * HOME_MAX_CHARS) / "run"
    postgres = EmbeddedPostgres(deep)
    assert await ask(await postgres.start(), "SELECT 1") == [(1,)]
    assert (deep / "postgres/sock/.s.PGSQL.5432").is_socket()
    await postgres.stop()
    forget_socket_dir(deep)


async def test_it_is_durable_utf8_and_listens_on_no_tcp_port(home: Path) -> None:
    postgres = EmbeddedPostgres(home)
    url = await postgres.start()
    shown = {}
    for name in ("fsync", "synchronous_commit", "listen_addresses", "server_encoding", "max_connections"):
        shown[name] = (await ask(url, f"SHOW {name}"))[0][0]
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
        "server_encoding": "UTF8",
        "max_connections": "200",
    }
    await postgres.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: shows what a service of root may not do")
async def test_root_never_runs_it_as_root_and_it_sees_nothing_of_the_host(home: Path) -> None:
    postgres = EmbeddedPostgres(home)
    await postgres.start()
    fields, seen = identity_and_view(postmaster(home))
    assert fields["Uid"].split() == [str(POSTGRES_UID)] * 4
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert seen.isdisjoint({"root", "home", "srv", "opt", "var", "etc/shadow"})
    await postgres.stop()
