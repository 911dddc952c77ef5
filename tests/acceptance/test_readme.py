"""The README's session works as it is written."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stack_process import ROOT, processes_of, stack

README = ROOT / "README.md"
ELLIPSIS = "…"


def session() -> list[tuple[str, list[str]]]:
    """The commands of the README's first console block, each with the lines that it shows."""
    block = re.search(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    assert block, "the README has no console session"
    steps: list[tuple[str, list[str]]] = []
    for line in block[1].splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return steps


def shown(expected: str, printed: str) -> bool:
    """Whether a shortened line is in what was printed; `…` stands for anything."""
    pattern = r".*?".join(re.escape(part) for part in expected.strip().split(ELLIPSIS))
    return re.search(pattern, re.sub(r" +", " ", printed)) is not None


def test_the_session_is_short():
    assert 8 <= len(session()) <= 10
    assert len(README.read_text().splitlines()) <= 100


@pytest.mark.timeout(180)
async def test_each_command_does_what_the_readme_says(tmp_path):
    home = tmp_path / "h"
    async with stack(home, tmp_path / "bin") as run:
        for command, lines in session():
            ended = await run(command)
            assert ended.code == 0, f"$ {command}\n{ended.out}{ended.err}"
            for line in lines:
                assert shown(line, ended.out), f"$ {command}\ndoes not print {line!r} but\n{ended.out}"
    assert processes_of(home) == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md"])
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    places = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    places += re.findall(r"`(tests/[\w/]+\.py)`", text)
    missing = [
        place
        for place in places
        if not ((ROOT / document).parent / place).exists() and not (ROOT / place).exists()
    ]
    assert missing == []
