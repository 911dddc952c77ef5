"""The demo ends by itself with 0, within its time, and leaves no process behind."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stack_process import ROOT, processes_of, shell

from factory_cli.failures import Exit

DEMO_WITHIN_S = 30.0


@pytest.mark.timeout(240)
async def test_the_demo_plays_to_its_end_and_leaves_nothing(tmp_path):
    home = tmp_path / "h"
    run = shell(home, tmp_path / "bin")
    prepared = await run("hyperfactory demo")  # makes the database, as setup would
    assert prepared.code == 0, prepared.out + prepared.err
    assert "nothing is left behind" in prepared.out
    assert "READY again: same id" in prepared.out
    assert processes_of(home) == []

    ended = await run("hyperfactory demo --json")
    assert ended.code == 0, ended.out + ended.err
    report = json.loads(ended.out)
    took_s = sum(step["milliseconds"] for step in report["steps"]) / 1000
    assert report["leaks"] == 0
    assert report["mission"]["approved"] is True
    assert took_s < DEMO_WITHIN_S
    assert processes_of(home) == []


@pytest.mark.timeout(120)
async def test_an_interrupted_demo_leaves_no_process(tmp_path):
    home = tmp_path / "h"
    run = shell(home, tmp_path / "bin")
    process = await asyncio.create_subprocess_exec(
        *(str(tmp_path / "bin" / "hyperfactory"), "demo"),
        env=run.environment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    while b"broadcast MISSION_START" not in (line := await process.stdout.readline()):
        assert line, "the demo ended before it broadcast"
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == Exit.INTERRUPTED
    assert b"Traceback" not in err
    assert processes_of(home) == []


@pytest.mark.timeout(120)
async def test_a_demo_that_cannot_start_says_why(tmp_path):
    run = shell(tmp_path / "h", tmp_path / "bin")
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "services").write_text("in the way")
    ended = await run("hyperfactory demo")
    assert ended.code != 0
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert processes_of(tmp_path / "h") == []
