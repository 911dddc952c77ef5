"""Runs the official MCP conformance suite against an endpoint, and compares what passed with what we expect.

A scenario of the suite may pass though what it looks for is not there, so each scenario's count of passed
checks is expected, in `conformance.json`; what does not apply is listed there with its reason.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "acceptance" / "node" / "conformance"
INSTALLED = ROOT / "build" / "node-conformance"
SUITE = Path("node_modules") / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
EXPECTED = Path(__file__).with_name("conformance.json")
REVISIONS = ("2026-07-28", "2025-11-25")
INSTALL_WITHIN_S = 150.0
RUN_WITHIN_S = 60.0
_DIRECTORY = re.compile(r"server-(.+)-\d{4}-\d{2}-\d{2}T[\d-]+Z")


@dataclass
class Verdict:
    """How a run ended: by scenario how many checks passed, and the checks that did not."""

    code: int
    passed: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)


def _program(name: str) -> str:
    """Node 22 or newer comes with the tests' packages: the machine's own may be older."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.fail(f"{name} is not installed beside Python: is the `dev` extra?")
    return found


async def _run(*command: str, cwd: Path, within_s: float) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(within_s):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace")


async def install() -> Path:
    """The suite's program, installed once for this checkout as its lock file says."""
    lock = PACKAGE / "package-lock.json"
    known = INSTALLED / "installed.json"
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / "lock").open("w") as alone:
        await asyncio.to_thread(fcntl.flock, alone, fcntl.LOCK_EX)  # several workers may need it at once
        if not known.exists() or known.read_bytes() != lock.read_bytes():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(PACKAGE / name, INSTALLED / name)
            options = ("ci", "--no-audit", "--no-fund", "--silent")
            code, said = await _run(_program("npm"), *options, cwd=INSTALLED, within_s=INSTALL_WITHIN_S)
            assert code == 0, said
            shutil.copy(lock, known)
    return INSTALLED / SUITE


async def run_suite(url: str, *options: str) -> Verdict:
    """One run of the suite against `url`, an MCP endpoint."""
    suite = await install()
    with tempfile.TemporaryDirectory(prefix="hfc") as kept:
        command = (_program("node"), str(suite), "server", "--url", url, *options, "-o", kept)
        code, _ = await _run(*command, cwd=INSTALLED, within_s=RUN_WITHIN_S)
        return _verdict(code, Path(kept))


def _verdict(code: int, kept: Path) -> Verdict:
    verdict = Verdict(code)
    for file in sorted(kept.glob("*/checks.json")):
        named = _DIRECTORY.fullmatch(file.parent.name)
        assert named is not None, file
        checks = json.loads(file.read_text())
        counts = Counter(check["status"] for check in checks)
        verdict.passed[named[1]] = counts["SUCCESS"]
        wrong = [check for check in checks if check["status"] in ("FAILURE", "WARNING")]
        if wrong:
            verdict.failures[named[1]] = [f"{check['id']}: {check.get('errorMessage')}" for check in wrong]
    return verdict


def expected(revision: str) -> tuple[Mapping[str, int], Mapping[str, str]]:
    """How many checks pass by scenario, and which scenarios do not apply and why."""
    found = json.loads(EXPECTED.read_text())
    return found["passed"][revision], found["does_not_apply"]


async def assert_conforms(url: str, revision: str) -> None:
    """All of the suite passes that applies: each scenario with as many checks as ever, no failure, no warning."""
    wanted, foreign = expected(revision)
    verdict = await run_suite(url, "--requirements", revision)
    assert {name: said for name, said in verdict.failures.items() if name not in foreign} == {}
    assert {name: count for name, count in verdict.passed.items() if name not in foreign} == wanted
    assert verdict.code == 0
