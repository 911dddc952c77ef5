"""Which tests one worker runs, where several share them: a file's, all that use Docker, all that use one stack."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[2]
DOCKER = re.compile(r"\b(plain_engine|remapped_engine|engines)\b")
"""Engines stand at known places, and whoever ends last would stop them under the other."""
STACK = re.compile(r"\b(running|proxy_url)\b")
"""The fixtures of acceptance tests whose stack takes seconds to start."""
OWN_STACK = "running_stack("


@cache
def group_of(file: str) -> str:
    """The group of a test file; only its text tells, as the one who shares out has not collected the tests."""
    if file.startswith("tests/tidy/"):
        return "tidy"  # parses every source, once
    text = (ROOT / file).read_text()
    if DOCKER.search(text):
        return "docker"
    if file.startswith("tests/acceptance/") and STACK.search(text) and OWN_STACK not in text:
        return "stack"
    return file


class Sharing(LoadScopeScheduling):
    """Groups in the order of their first tests: the acceptance tests, which take longest, come first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.split("::")[0])
