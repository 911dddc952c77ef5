"""docs/operations.md names only metrics, log actions and commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
PROGRAMS = ("factory_server", "watchdog", "gateway", "wire", "embedded", "agent_runtime")
SOURCES = "\n".join(file.read_text() for program in PROGRAMS for file in (ROOT / program).rglob("*.py"))


def metrics_in_code() -> set[str]:
    """Names as they are declared; a counter is shown with `_total`."""
    plain = set(re.findall(r'"((?:hf|hyperfactory)_[a-z_]+)"', SOURCES))
    of_gateway = {
        f"hyperfactory_gateway_{name}" for name in re.findall(r'_(?:gauge|counter)\(\s*"([a-z_]+)"', SOURCES)
    }
    names = plain | of_gateway
    return names | {f"{name}_total" for name in names}


def actions_in_code() -> set[str]:
    return set(re.findall(r'action(?:=|": )"([a-z._]+)"', SOURCES))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:hf|hyperfactory)_[a-z_]+)", PAGE))))
def test_the_metric_exists(name: str) -> None:
    assert name in metrics_in_code()


def test_the_actions_exist() -> None:
    table = PAGE.partition("### `action` keys")[2].partition("\n## ")[0]
    listed = {key for row in table.splitlines()[2:] for key in re.findall(r"`([a-z._]+)`", row)} - {"action"}
    mentioned = {
        key
        for words in re.findall(r"`action` ((?:`[a-z._]+`(?:, )?)+)", PAGE)
        for key in re.findall(r"`([a-z._]+)`", words)
    }
    assert listed
    assert listed | mentioned <= actions_in_code()
    assert mentioned <= listed


def test_the_commands_exist() -> None:
    commands = {
        tuple(words.split()) for words in re.findall(r"`(?:sudo )?hyperfactory ((?:[a-z-]+ ?){1,2})", PAGE)
    }
    assert commands
    for words in sorted(commands):
        known = words[:2] if words[0] in ("crew", "agent") else words[:1]
        done = subprocess.run(
            [sys.executable, "-m", "factory_cli", *known, "--help"],
            cwd=ROOT,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, known


def test_the_files_exist() -> None:
    for name in re.findall(r"`(compose[a-z.]*\.yaml|deploy/[a-z./]+)`", PAGE):
        path = ROOT / name if name.startswith("deploy/") else ROOT / "deploy" / name
        assert path.exists() or name in ("deploy/secrets", "deploy/secrets/", "deploy/.env"), name
