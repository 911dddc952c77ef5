"""A process that only holds the fork server: factories without its privileges make sandboxes through it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from factory_server.core.sandbox import SandboxSpec
from factory_server.drivers.namespaces import protocol
from factory_server.drivers.namespaces.driver import NamespacesDriver
from tests.contract.driver_suite import DEADLINE_S, until
from tests.contract.test_drivers import PATHS, REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the full tier needs root")

Held = tuple[asyncio.subprocess.Process, NamespacesDriver]


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    """`--hold` as a process, and the driver of a factory on the same home."""
    with tempfile.TemporaryDirectory(prefix="hft") as path:
        home = Path(path)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "factory_server", "--home", str(home)),
            *("--hold", "--driver", "namespaces", "--metrics", "127.0.0.1:0"),
            cwd=REPOSITORY,
            env=os.environ | PATHS,
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def listening() -> bool:
            return (home / "sandboxes" / "s" / "zygote.sock").is_socket()

        await until(listening, what="the fork server listens")
        driver = NamespacesDriver(home / "sandboxes", factory=home.name)
        await driver.start()
        yield process, driver
        if process.returncode is None:
            process.kill()
            await process.wait()
        await NamespacesDriver(home / "sandboxes", factory=home.name).terminate()
        await driver.close()


def fork_server(driver: NamespacesDriver) -> int:
    """Its process id."""
    assert driver._link._client is not None
    return int(driver._link._client.greeting["pid"])


async def test_a_factory_uses_the_fork_server_of_another_process(held: Held) -> None:
    process, driver = held
    sandbox = await driver.create(SandboxSpec("alice-g1"), deadline_s=DEADLINE_S)
    assert [s.instance for s in await driver.list()] == ["alice-g1"]
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE_S):
        assert await process.wait() == 0
    os.kill(sandbox.host_pid, 0)  # who holds does not own: the sandbox goes on


async def test_a_dead_fork_server_is_started_again_without_a_factory(held: Held) -> None:
    _, driver = held
    before = fork_server(driver)
    path = Path(driver._files.where.fork_server)
    await driver.close()
    os.kill(before, signal.SIGKILL)

    async def renewed() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dialler:
            dialler.settimeout(1)
            try:
                dialler.connect(str(path))
                return bool(protocol.decode(dialler.recv(protocol.MESSAGE_MAX_BYTES))["pid"] != before)
            except (OSError, ValueError):
                return False  # the old one on its way out, or none

    await until(renewed, what="a new fork server listens")
    again = NamespacesDriver(path.parents[1], factory=path.parents[2].name)
    await again.start()
    assert fork_server(again) != before
    await again.close()
