"""The demo ends by itself with 0, within its time, and leaves no process behind."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stack_process import ROOT, Shell, processes_of, shell

from factory_cli.failures import Exit

DEMO_WITHIN_S = 60.0
"""Half a minute is what we promise on a machine that does nothing else; tests run two at a time."""


@pytest.mark.timeout(240)
async def test_an_interrupted_demo_leaves_no_process_and_the_next_one_plays_to_its_end(tmp_path):
    home = tmp_path / "h"
    run = shell(home, tmp_path / "bin")
    await interrupt(tmp_path / "bin" / "hyperfactory", run)
    assert processes_of(home) == []

    ended = await run("hyperfactory --json demo")
    assert ended.code == 0, ended.out + ended.err
    report = json.loads(ended.out)
    assert report["leaks"] == 0
    assert report["mission"]["approved"] is True
    assert "heal coder-1 after SIGKILL" in [step["step"] for step in report["steps"]]
    assert sum(step["milliseconds"] for step in report["steps"]) / 1000 < DEMO_WITHIN_S
    assert processes_of(home) == []


async def interrupt(command: Path, run: Shell) -> None:
    """Press Ctrl-C in the middle of a demo, whose crew is there by then."""
    process = await asyncio.create_subprocess_exec(
        *(str(command), "demo"),
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
