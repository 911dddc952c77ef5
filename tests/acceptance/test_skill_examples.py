"""Our example packs are packs for everybody: the specification's own validator takes them, and so do we."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from factory_cli import skills as cli
from factory_server.core.skill_archive import Intake, read_entries
from factory_server.core.skills import Pack, make_pack

EXAMPLES = sorted((Path(__file__).parents[2] / "examples/skills").iterdir())
VALIDATE_MAX_S = 30


def pack_of(directory: Path) -> Pack:
    intake = Intake()
    intake.feed(cli._archive(directory))
    return make_pack(read_entries(intake.finish()))[0]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_specifications_own_validator_takes_it(example: Path) -> None:
    command = [Path(sys.executable).with_name("agentskills"), "validate", str(example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=VALIDATE_MAX_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_we_take_it_and_its_tools_run(example: Path, tmp_path: Path) -> None:
    pack = pack_of(example)
    assert pack.name == example.name
    given = {
        "text_statistics": {"text": "One two. Three!\nFour?"},
        "add_release": {"version": "1.0", "date": "2026-11-22", "added": ["Everything"]},
    }
    for tool in pack.tools:
        script = [sys.executable, "-E", "-s", str(example / tool.script)]
        done = subprocess.run(
            script,
            input=json.dumps(given[tool.name]),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=10,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
    assert pack.tools


def test_what_the_validator_refuses_we_refuse(tmp_path: Path) -> None:
    """And the other way round where it matters: a name beside the rules is taken by nobody."""
    pack = tmp_path / "Bad_Name"
    pack.mkdir()
    (pack / "SKILL.md").write_text("---\nname: Bad_Name\ndescription: x\n---\n")
    command = [Path(sys.executable).with_name("agentskills"), "validate", str(pack)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=VALIDATE_MAX_S, check=False)
    assert done.returncode == 1
    with pytest.raises(Exception, match="the name"):
        pack_of(pack)
