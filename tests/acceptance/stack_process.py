"""The stack as a user starts it, and the `hyperfactory` command on the PATH."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_WITHIN_S = 90.0
STOP_WITHIN_S = 45.0
COMMAND_WITHIN_S = 60.0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shell:
    """Runs command lines with a home and a PATH of their own."""

    home: Path
    environment: dict[str, str]

    async def __call__(self, line: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-o", "pipefail", "-c", line),
            cwd=ROOT,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(COMMAND_WITHIN_S):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Ended(process.returncode or 0, out.decode(), err.decode())


def shell(home: Path, bin_dir: Path) -> Shell:
    """Make a shell in which `hyperfactory` is this checkout's."""
    bin_dir.mkdir(exist_ok=True)
    command = bin_dir / "hyperfactory"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m factory_cli "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        "HYPERFACTORY_HOME": str(home),
    }
    return Shell(home, environment)


@asynccontextmanager
async def stack(home: Path, bin_dir: Path) -> AsyncIterator[Shell]:
    """Run `hyperfactory up` until the block ends; it must stop cleanly on SIGINT."""
    run = shell(home, bin_dir)
    process = await asyncio.create_subprocess_exec(
        *(str(bin_dir / "hyperfactory"), "up"),
        cwd=ROOT,
        env=run.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said: list[str] = []
    try:
        async with asyncio.timeout(START_WITHIN_S):
            while not (said and said[-1].startswith("ready at")):
                line = (await process.stdout.readline()).decode()
                assert line, f"the stack ended before it was ready: {''.join(said)}"
                said.append(line)
        yield run
    finally:
        await _stop(process)
    assert process.returncode == 0


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def processes_of(home: Path) -> list[str]:
    """Command lines of living processes that name the home, this one left out."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(home) in line and int(process.name) != os.getpid():
            found.append(f"{process.name} {line}")
    return found
