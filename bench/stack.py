"""A stack of the bench's own, in a home that is removed afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
START_WITHIN_S = 120.0
STOP_WITHIN_S = 90.0


class StackFailedError(Exception):
    """The stack did not start, or did not stop cleanly."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Where a running stack's things are."""

    home: Path
    pid: int
    driver: str = "namespaces"

    @property
    def client(self) -> dict[str, str]:
        """What client.json says."""
        return dict(json.loads((self.home / "client.json").read_text()))

    @property
    def ports(self) -> dict[str, int]:
        """The stack's ports by name."""
        return dict(json.loads((self.home / "ports.json").read_text()))

    def processes(self) -> list[int]:
        """All that belong to the stack: whoever names the home on its command line, and their children."""
        parents: dict[int, int] = {}
        named = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                stat = (process / "stat").read_text().rpartition(")")[2].split()
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(process.name)] = int(stat[1])
            if str(self.home).encode() in line:
                named.add(int(process.name))
        named.discard(os.getpid())
        return sorted(pid for pid in parents if _descends(pid, named, parents))


def _descends(pid: int, ancestors: set[int], parents: dict[int, int]) -> bool:
    while pid and pid not in ancestors:
        pid = parents.get(pid, 0)
    return bool(pid)


def environment() -> dict[str, str]:
    """For programs of this checkout."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}"}


@asynccontextmanager
async def running_stack(driver: str) -> AsyncIterator[Stack]:
    """Start a stack with this driver, and stop it cleanly at the end."""
    home = Path(tempfile.mkdtemp(prefix="hfb", dir="/tmp"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "embedded", "--home", str(home), "--driver", driver),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        await _until_ready(process.stdout)
        yield Stack(home, process.pid, driver)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(STOP_WITHIN_S):
            rest, _ = await process.communicate()
        if process.returncode == 0:
            shutil.rmtree(home, ignore_errors=True)
    if process.returncode != 0:
        raise StackFailedError(f"the stack did not stop cleanly: {rest.decode()}")


async def _until_ready(output: asyncio.StreamReader) -> None:
    said = b""
    async with asyncio.timeout(START_WITHIN_S):
        while line := await output.readline():
            said += line
            if line.startswith(b"ready at"):
                return
    raise StackFailedError(f"the stack ended before it was ready: {said.decode()}")
