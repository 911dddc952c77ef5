"""What programs of the agent find: a little of our own environment, and the base that the sandbox shows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# The base of the profile, where the driver shows one: `bin` for programs, `python` for packages of Python.
BASE: Final = Path("/opt/base")
PACKAGES: Final = BASE / "python"
# Of our own environment only these reach a program: the rest may carry secrets.
INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")


def environment(workspace: Path, base: Path = BASE) -> dict[str, str]:
    """The environment of every program of the agent, before the profile's own."""
    found = {name: os.environ[name] for name in INHERITED if name in os.environ}
    if (base / "bin").is_dir():
        found["PATH"] = f"{base / 'bin'}:{found.get('PATH', os.defpath)}"
    if (base / "python").is_dir():
        found["PYTHONPATH"] = str(base / "python")
    return {**found, "HOME": str(workspace)}
