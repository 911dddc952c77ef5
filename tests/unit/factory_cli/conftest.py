"""A fake factory to talk to, and the command as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_factory import FakeCrews, serving

ROOT = Path(__file__).parents[3]
COMMAND_WITHIN_S = 30.0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its stream of documents."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Command:
    """The command, in a home of its own."""

    home: Path

    async def __call__(self, *args: str, stdin: str = "") -> Ended:
        environment = {**os.environ, "HYPERFACTORY_HOME": str(self.home), "PYTHONPATH": f"{ROOT}:{ROOT}/gen"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "factory_cli", *args),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            async with asyncio.timeout(COMMAND_WITHIN_S):
                out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Ended(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
def cli(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
async def crews(tmp_path: Path) -> AsyncIterator[FakeCrews]:
    async with serving(tmp_path) as servicer:
        yield servicer
