"""Short homes for real services, and proof that nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a short path; at the end no process and no mount may name it."""
    path = Path(tempfile.mkdtemp(prefix="hf"))
    path.chmod(0o711)
    try:
        yield path
        left = [words for _, words in processes_of(path)]
        mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(path) in line]
    finally:
        for pid, _ in processes_of(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path)
    assert left == []
    assert mounts == []


def processes_of(home: Path) -> list[tuple[int, str]]:
    """Return the living processes whose command line names the home."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(home) in words and int(entry.name) != os.getpid():
                found.append((int(entry.name), words))
    return found
