"""The drivers' suite on a real Docker engine, and what only containers can be asked."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest

from factory_server.core.errors import Unavailable
from factory_server.core.sandbox import Enforcement, Exit, Limits, Sandbox, SandboxSpec, Tier
from factory_server.drivers.docker import hardening
from factory_server.drivers.docker.driver import DockerDriver
from tests.contract.driver_suite import DriverSuite, exits_of, until
from tests.contract.small_agent import ask
from tests.contract.test_drivers import ENTRY, PATHS, REPOSITORY, NamespacesSuite, files_below, user_lines

MAKE_MAX_S = 60.0
IN_CI = os.environ.get("CI") == "true"


def engine(at: str, *options: str) -> Iterator[str]:
    """A private engine that runs or is started, with the agents' image in it."""
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        reason = "needs root and a Docker engine: apt-get install docker.io"
        pytest.fail(reason) if IN_CI else pytest.skip(reason)
    scripts = REPOSITORY / "scripts"
    environment = {"PYTHON_FOR_PIP": sys.executable, **os.environ}
    where = [*options, "--at", at]
    ran = not subprocess.run([scripts / "dockerd.sh", "status", *where], capture_output=True).returncode
    url = subprocess.check_output([scripts / "dockerd.sh", "start", *where], text=True).strip()
    subprocess.run([scripts / "agent_image.sh", "--engine", url], check=True, env=environment)
    yield url
    if not ran:
        subprocess.run([scripts / "dockerd.sh", "stop", *where], check=True)


@pytest.fixture(scope="session")
def plain_engine() -> Iterator[str]:
    yield from engine("/tmp/hf-dockerd")


@pytest.fixture(scope="session")
def remapped_engine() -> Iterator[str]:
    yield from engine("/tmp/hf-dockerd-remap", "--userns-remap")


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hft") as path:
        yield Path(path)


@dataclass
class DockerRig:
    """The driver on a real engine."""

    state: Path
    url: str
    driver: DockerDriver = field(init=False)

    def __post_init__(self) -> None:
        self.driver = self.reopen()
        self.client = docker.APIClient(base_url=self.url, version="auto", timeout=30)

    def reopen(self) -> DockerDriver:
        return DockerDriver(
            self.state, factory=self.state.name, engine=self.url, entry=ENTRY, packages=("tests",)
        )

    async def kill(self, sandbox: Sandbox) -> None:
        os.kill(sandbox.host_pid, signal.SIGKILL)

    def containers(self) -> list[dict[str, Any]]:
        label = f"{hardening.LABEL_FACTORY}={self.driver._host.factory}"
        found: list[dict[str, Any]] = self.client.containers(all=True, filters={"label": label})
        return found

    def daemon(self) -> int:
        return int(Path(self.url.removeprefix("unix://")).with_name("docker.pid").read_text())

    def leftovers(self) -> list[str]:
        return files_below(self.state) + [item["Names"][0] for item in self.containers()] + self.mounts()

    def mounts(self) -> list[str]:
        """Mounts that mention this factory, as this process and as the engine see them."""
        tables = (Path(f"/proc/{pid}/mountinfo").read_text() for pid in ("self", self.daemon()))
        return [line for table in tables for line in table.splitlines() if str(self.state) in line]

    async def close(self) -> None:
        await self.driver.terminate()
        self.client.close()


@pytest.mark.timeout(180)
class DockerSuite(DriverSuite):
    """The contract, and what containers must do beyond it."""

    test_freezing_stops_it = NamespacesSuite.test_freezing_stops_it
    test_the_runtimes_own_end_is_told = NamespacesSuite.test_the_runtimes_own_end_is_told_apart_from_a_kill
    test_stats_are_of_this_instance = NamespacesSuite.test_stats_are_of_this_instance
    test_orphans_are_reaped = NamespacesSuite.test_orphans_are_reaped
    test_publish_takes_nothing_but_a_socket = NamespacesSuite.test_publish_takes_nothing_but_a_socket

    async def make(self, rig: Any, name: str = "a-g1", **labels: str) -> Sandbox:
        return await rig.driver.create(SandboxSpec(name, labels=labels), deadline_s=MAKE_MAX_S)


class TestDocker(DockerSuite):
    """On a plain engine."""

    @pytest.fixture
    async def rig(self, state: Path, plain_engine: str) -> AsyncIterator[DockerRig]:
        rig = DockerRig(state, plain_engine)
        await rig.driver.start()
        yield rig
        await rig.close()
