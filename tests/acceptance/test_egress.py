"""Crews reach what their manifest allows and nothing else: with the whole product, in an internet of our own.

The tests proper are in `egress/inside.py` and `egress/model.py`: this file makes the world that they need and
runs them in it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.acceptance.egress import world

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(300)


@pytest.mark.skipif(not world.usable(), reason="needs root, unshare and ip to make an internet of its own")
async def test_the_only_way_out_is_the_allowed_one() -> None:
    inside = [str(HERE / "egress" / name) for name in ("inside.py", "model.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *inside]
    done = await asyncio.to_thread(world.enter, command)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and "skipped" not in done.stdout, done.stdout
