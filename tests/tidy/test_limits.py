"""Files and functions stay small enough to be read, and say what they are for."""

from __future__ import annotations

import ast
import statistics
import sys

import pytest

from tests.tidy.source import PACKAGES, ROOT, code, everything, functions, length, modules

FILE_MAX_LINES = 500
TEST_FILE_MAX_LINES = 800
FUNCTION_MAX_LINES = 70
FILE_MEDIAN_MAX_LINES = 150
BANNED_CALLS = {
    "time.sleep": "nothing here may block",
    "time.time": "take `now` as an argument, or use time.monotonic()",
    "asyncio.create_task": "every task has an owner",
    "asyncio.ensure_future": "every task has an owner",
    "asyncio.gather": "use a TaskGroup",
}


def test_no_file_is_too_long() -> None:
    long = {m.path: m.lines for m in everything() if m.lines > _limit(m.package)}
    assert not long


def test_no_function_is_too_long() -> None:
    long = {
        f"{module.path}:{function.name}": length(function)
        for module in everything()
        for function in functions(module)
        if length(function) > FUNCTION_MAX_LINES
    }
    assert not long


def test_every_module_opens_with_its_purpose() -> None:
    silent = [m.path for m in everything() if m.text.strip() and not ast.get_docstring(m.tree)]
    assert not silent


def test_the_median_file_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = [m.lines for m in code() if m.text.strip()]
    bodies = [length(function) for m in code() for function in functions(m)]
    tests = sum(m.lines for m in modules("tests"))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(lengths)} files, {sum(lengths)} lines: file median {statistics.median(lengths):.0f}, "
            f"function median {statistics.median(bodies):.0f}; tests {tests / sum(lengths):.2f} times the code\n"
        )
    assert statistics.median(lengths) <= FILE_MEDIAN_MAX_LINES


def test_nothing_mocks_or_blocks() -> None:
    """Ruff bans these as well, but can be told to look away; this cannot."""
    found = [
        f"{module.path}:{line}: {name}: {BANNED_CALLS.get(name, 'use a verified fake')}"
        for module in modules(*PACKAGES)
        for line, name in _names(module.tree)
        if name in BANNED_CALLS or name.startswith("unittest.mock")
    ]
    found += [
        f"{module.path}:{line}: {name}"
        for module in modules("tests")
        for line, name in _names(module.tree)
        if name.startswith("unittest.mock")
    ]
    assert not found


def test_every_test_file_has_a_name_of_its_own() -> None:
    """Without packages two files of one name are one module to pytest."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def _limit(package: str) -> int:
    return TEST_FILE_MAX_LINES if package == "tests" else FILE_MAX_LINES


def _names(tree: ast.Module) -> list[tuple[int, str]]:
    """Every imported or dotted name, with its line."""
    names: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append((node.lineno, f"{node.value.id}.{node.attr}"))
    return names
