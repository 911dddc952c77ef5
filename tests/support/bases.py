"""A base with MCP servers that nobody here wrote, built once and kept beside other build results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BASES = REPOSITORY / "build" / "bases"


@pytest.fixture(scope="session")
def bases() -> Path:
    """The directory with the base `office`; its first build needs the registries of npm and PyPI."""
    source, script = REPOSITORY / "examples" / "bases" / "office", REPOSITORY / "scripts" / "base.sh"
    subprocess.run([script, source, BASES / "office"], check=True, timeout=300)
    return BASES
