"""Private Docker engines for tests, with the agents' image in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "scripts"
IN_CI = os.environ.get("CI") == "true"


def demand() -> None:
    """Skip where no engine can be had; a build machine must have one."""
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        reason = "needs root and a Docker engine: apt-get install docker.io"
        pytest.fail(reason) if IN_CI else pytest.skip(reason)


def start(*where: str) -> str:
    """Start or adopt one; the answer is its URL."""
    url = subprocess.check_output([SCRIPTS / "dockerd.sh", "start", *where], text=True).strip()
    environment = {"PYTHON_FOR_PIP": sys.executable, **os.environ}
    subprocess.run([SCRIPTS / "agent_image.sh", "--engine", url], check=True, env=environment)
    return url


def running(*where: str) -> bool:
    """Whether it answers."""
    return not subprocess.run([SCRIPTS / "dockerd.sh", "status", *where], capture_output=True).returncode


def stop(*where: str) -> None:
    """End it and all its containers."""
    subprocess.run([SCRIPTS / "dockerd.sh", "stop", *where], check=True)


def engine(*where: str) -> Iterator[str]:
    """One for as long as tests need it, or longer if it ran before them."""
    demand()
    ran = running(*where)
    yield start(*where)
    if not ran:
        stop(*where)


@pytest.fixture(scope="session")
def plain_engine() -> Iterator[str]:
    """As engines are by default."""
    yield from engine("--at", "/tmp/hf-dockerd")


@pytest.fixture(scope="session")
def remapped_engine() -> Iterator[str]:
    """With user namespaces."""
    yield from engine("--at", "/tmp/hf-dockerd-remap", "--userns-remap")
