"""`python -m embedded` starts everything, adopts everything after its own kill -9, and stops it all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedded import svcbox

ROOT = Path(__file__).parents[3]
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 40.0
SERVICES = ("postgres", "valkey", "factory", "watchdog", "gateway")

pytestmark = pytest.mark.timeout(180)


@asynccontextmanager
async def serve(home: Path) -> AsyncIterator[Process]:
    """Start the stack; whatever happens in the block, it is stopped at the end."""
    process = await _start(home)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), STOP_WITHIN_S)


async def _start(home: Path) -> Process:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}
    command = (sys.executable, "-P", "-m", "embedded", "--home", str(home))
    return await asyncio.create_subprocess_exec(
        *command, cwd="/", env=environment, stdout=PIPE, stderr=STDOUT
    )


async def ready(process: Process) -> str:
    """Read until the ready line; return everything that was said."""
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(READY_WITHIN_S):
        while "ready at" not in said:
            line = (await process.stdout.readline()).decode()
            assert line, f"ended before it was ready: {said}"
            said += line
    return said


def pids(home: Path) -> dict[str, int]:
    records = {name: svcbox.parse_record((home / f"services/{name}.pid").read_text()) for name in SERVICES}
    return {name: record["pid"] for name, record in records.items() if record and svcbox.alive(record)}


async def test_it_starts_all_writes_the_client_file_refuses_another_and_stops_on_sigint(home: Path) -> None:
    async with serve(home) as process:
        await ready(process)
        assert set(pids(home)) == set(SERVICES)
        client = home / "client.json"
        told = json.loads(client.read_text())
        assert stat.S_IMODE(client.stat().st_mode) == 0o600
        assert [name for name in ("ca", "cert", "key", "token") if not os.access(told[name], os.R_OK)] == []
        assert told["authority"] == "factory.svc"
        host, _, port = told["endpoint"].partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        await writer.wait_closed()
        async with serve(home) as second:
            said, _ = await asyncio.wait_for(second.communicate(), READY_WITHIN_S)
        assert second.returncode == 1
        assert f"process {process.pid} already does" in said.decode()
        assert set(pids(home)) == set(SERVICES)
    assert process.returncode == 0
    assert not client.exists()
    assert pids(home) == {}


async def test_after_its_own_kill_9_the_next_stack_adopts_everything(home: Path) -> None:
    async with serve(home) as first:
        await ready(first)
        told, before = (home / "client.json").read_text(), pids(home)
        first.kill()
        await first.wait()
        async with serve(home) as second:
            said = await ready(second)
            assert pids(home) == before
            assert said.count("adopted") == len(SERVICES)
            assert (home / "client.json").read_text() == told


async def test_each_service_that_is_killed_comes_back(home: Path) -> None:
    async with serve(home) as process:
        await ready(process)
        for name in SERVICES:
            before = pids(home)
            os.kill(before[name], signal.SIGKILL)
            async with asyncio.timeout(READY_WITHIN_S):
                while pids(home).get(name) in (None, before[name]):
                    await asyncio.sleep(0.05)
        assert set(pids(home)) == set(SERVICES)


async def test_sigterm_while_it_starts_leaves_nothing(home: Path) -> None:
    async with serve(home) as process:
        async with asyncio.timeout(READY_WITHIN_S):
            while not (home / "lock").exists():
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), STOP_WITHIN_S)
    assert process.returncode == 0
