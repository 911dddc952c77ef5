"""The services start for root, with or without namespaces, for an ordinary user, and for a lone root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NOBODY = 65_534
WITHIN_S = 50
ROUND = """
import asyncio, os, signal, sys
from pathlib import Path
import psycopg
from redis.asyncio import Redis
from embedded.postgres import EmbeddedPostgres
from embedded.valkey import EmbeddedValkey

async def main(home):
    postgres, valkey = EmbeddedPostgres(home), EmbeddedValkey(home)
    await valkey.start()
    for expected in (0, 1):
        async with await psycopg.AsyncConnection.connect(await postgres.start(), autocommit=True) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
            found = await (await connection.execute("SELECT count(*) FROM kept")).fetchone()
            assert found == (expected,), found
            await connection.execute("INSERT INTO kept VALUES (1)")
        if expected == 0:
            os.kill(int((home / "postgres/data/postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    async with Redis.from_url(valkey.url) as client:
        assert await client.set("a", 1)
    await valkey.stop()
    await postgres.stop()
    print("kept")

asyncio.run(main(Path(sys.argv[1])))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to drop what it has")


NO_MOUNTS = ["setpriv", "--bounding-set=-sys_admin"]
ORDINARY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
LONE_ROOT = [*ORDINARY, "unshare", "--map-root-user"]


def run(command: list[str]) -> str:
    site = next(path for path in sys.path if path.endswith("site-packages"))
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}:{site}"}
    done = subprocess.run(
        command, env=env, cwd="/", capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    return done.stdout + done.stderr


def python_for(prefix: list[str]) -> str:
    """Find a Python that works behind the prefix: root's own may lie where only root can go."""
    probe = "import os, sys, redis.asyncio, psycopg; print(os.access(sys.executable, os.X_OK))"
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if run([*prefix, candidate, "-c", probe]) == "True\n":
            return candidate
    pytest.skip(f"no Python works behind {prefix[:2]}")


@needs_root
@pytest.mark.parametrize(
    ("prefix", "owner"),
    [([], 0), (NO_MOUNTS, 0), (ORDINARY, NOBODY), (LONE_ROOT, NOBODY)],
    ids=["root", "root-without-namespaces", "ordinary-user", "lone-root-of-a-user-namespace"],
)
def test_they_start_keep_rows_and_stop(home: Path, prefix: list[str], owner: int) -> None:
    os.chown(home, owner, owner)
    assert run([*prefix, python_for(prefix), "-c", ROUND, str(home)]) == "kept\n"


@needs_root
def test_data_under_a_closed_directory_is_served_without_opening_it(home: Path) -> None:
    home.chmod(0o700)
    (home / "in").mkdir()
    assert run([sys.executable, "-c", ROUND, str(home / "in")]) == "kept\n"
    assert home.stat().st_mode & 0o777 == 0o700


@needs_root
def test_where_that_is_impossible_one_sentence_says_why(home: Path) -> None:
    home.chmod(0o700)
    (home / "in").mkdir()
    said = run([*NO_MOUNTS, sys.executable, "-c", ROUND, str(home / "in")])
    assert "namespaces are refused here and uid" in said
    assert "kept" not in said
