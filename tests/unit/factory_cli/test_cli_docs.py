"""The pages' command lines are ones that the command takes, and it can call every service of the contract."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from factory_cli.app import app
from factory_cli.calling import services

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"^(?:\$ )?(?:\S*/)?hyperfactory (.+)$", re.M)


def written() -> list[str]:
    lines = (
        line
        for page in PAGES
        for block in FENCED.findall(page.read_text())
        for line in COMMAND.findall(block)
    )
    return sorted({re.sub(r"\s*(#|<<<|&( |$)).*", "", line) for line in lines})


@pytest.mark.parametrize("line", written())
def test_a_command_of_the_docs_is_taken(line: str) -> None:
    command, words = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    command.make_context("hyperfactory", words)  # says what it does not understand


def test_every_service_of_the_contract_can_be_called() -> None:
    told = {
        name
        for file in (ROOT / "proto").rglob("*.proto")
        for name in re.findall(r"^service (\w+)", file.read_text(), re.M)
    }
    assert told - {service.name for service in services()} == set()
