"""Plan how the running Python, its packages and ours appear inside a sandbox, under /app.

The fork server runs from that very tree, so what it imported before a fork and what an agent imports later, or
starts as a subprocess of `sys.executable`, are the same files at the same paths. Nothing depends on where the
host keeps its venv.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

APP: Final = "/app"
SRC: Final = f"{APP}/src"
# Places that a sandbox covers with its own mounts, so that nothing below them can be shown.
_COVERED: Final = ("/tmp", "/workspace", "/dev", "/proc", "/run", "/app", "/skills", "/usr", "/lib")


@dataclass(slots=True)
class PythonTree:
    """Binds and links by path inside the sandbox, and how to start Python there."""

    executable: str
    binds: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    library_path: str = ""


def locate(packages: Iterable[str]) -> dict[str, str]:
    """Where packages of ours lie on the host, for those that the venv's site-packages do not hold."""
    site = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    found = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or filter(None, [spec.origin]))
        for place in places:
            if not place.startswith(site):
                found[name] = place
                break
    return found


def plan(packages: Mapping[str, str]) -> PythonTree:
    """The tree for the interpreter that runs this function, with `packages` (name → host path) of ours."""
    base = Path(sys.base_prefix).resolve()
    binary = Path(sys.executable).resolve()
    inside_usr = base.is_relative_to("/usr")
    home = str(base) if inside_usr else f"{APP}/python"
    tree = PythonTree(executable=f"{home}/{os.path.relpath(binary, base)}")
    if not inside_usr:
        tree.binds[home] = str(base)
        tree.library_path = f"{home}/lib"
        built_for = str(sysconfig.get_config_var("LIBDIR"))
        if sysconfig.get_config_var("Py_ENABLE_SHARED") and not built_for.startswith(_COVERED):
            # The compiled-in library path still resolves when a tool starts Python with an empty environment.
            tree.links[built_for] = tree.library_path
    _add_site_packages(tree, home, base)
    for name, source in packages.items():
        suffix = "" if Path(source).is_dir() else Path(source).suffix
        tree.binds[f"{SRC}/{name}{suffix}"] = source
    return tree


def _add_site_packages(tree: PythonTree, home: str, base: Path) -> None:
    """Rebuild the venv around its site-packages; its own links and configuration point at host paths."""
    if sys.prefix == sys.base_prefix:
        return
    venv = f"{APP}/venv"
    tree.files[f"{venv}/pyvenv.cfg"] = f"home = {home}/bin\ninclude-system-site-packages = false\n"
    binary = f"python{sys.version_info.major}.{sys.version_info.minor}"
    tree.links |= {f"{venv}/bin/{name}": tree.executable for name in ("python", "python3", binary)}
    for kind in ("purelib", "platlib"):
        source = Path(sysconfig.get_path(kind))
        tree.binds[f"{venv}/{source.relative_to(sys.prefix)}"] = str(source)
    tree.executable = f"{venv}/bin/python"


def environment(tree: PythonTree) -> dict[str, str]:
    """The whole environment of the fork server and of every agent; no variable of the factory gets in."""
    variables = {
        "PATH": f"{Path(tree.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": SRC,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/workspace",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        # Off before grpc is imported: its fork handlers wedge an agent that forks at its process limit.
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }
    if tree.library_path:
        variables["LD_LIBRARY_PATH"] = tree.library_path
    return variables
