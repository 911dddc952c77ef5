"""Folders are floors, and a package's name is nobody else's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tidy.source import PACKAGES, ROOT

OURS = "hyper-agent-factory"
COMMAND_MAX_S = 120


def test_imports_point_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--config", ".importlinter", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_MAX_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_ours_and_no_other_distributions(package: str) -> None:
    """PyPI has a `watchdog`, too."""
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {OURS}
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def test_no_dependency_of_ours_is_called_like_a_package_of_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {name.split("[")[0].split(">")[0].split("=")[0].strip().replace("-", "_") for name in wanted}
    assert not names & set(PACKAGES)


def test_every_package_is_installed_with_the_distribution() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    included = {pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]}
    assert set(PACKAGES) <= included


@pytest.mark.parametrize("program", ["lifecycle.py", "status.py"])
def test_a_generated_page_is_fresh(program: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / program, "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_MAX_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
