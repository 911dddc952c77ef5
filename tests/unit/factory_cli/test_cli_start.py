"""The command starts fast, because it imports what a command needs only when it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("grpc", "google.protobuf", "psycopg", "redis", "cryptography", "embedded.stack", "rich.live")


@pytest.mark.parametrize("args", [["--help"], ["crew", "--help"], ["--show-completion"]])
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys, contextlib, io\n"
        "from factory_cli.__main__ import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()): main({args!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
