"""A tool's structured result is what its output schema promises, or an error that says why not."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.capabilities import Capabilities
from agent_runtime.servers.servers import Servers
from agent_runtime.servers.spec import ServerSpec
from agent_runtime.tools.registry import Outcome, Registry, Tool

PROGRAM = Path(__file__).parents[2] / "support" / "stdio_server.py"
BASE = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
WAIT_MAX_S = 20.0
COUNTS = {
    "type": "object",
    "properties": {"count": {"type": "integer"}, "parts": {"type": "array", "items": {"type": "number"}}},
    "required": ["count"],
}


async def ignore(_fraction: float, _message: str, _detail: Mapping[str, Any]) -> None:
    return None


async def result_of(outcome: Outcome, schema: Mapping[str, Any] | None = COUNTS) -> Outcome:
    """What a caller gets of a tool that answers so."""

    async def answer(_call: Any) -> Outcome:
        return outcome

    registry = Registry([Tool("counts", "", {"type": "object"}, answer, output_schema=schema)])
    return await registry.call(registry.require("counts", writer=True), {}, 5.0, ignore)


@pytest.mark.parametrize(
    "kept",
    [
        Outcome("two", {"count": 2, "more": "is allowed"}),
        Outcome("it failed", {"reason": "no promise is made of errors"}, is_error=True),
        Outcome("", asks={"answer": {"method": "elicitation/create"}}),
        Outcome("large", {"count": 1, "parts": [0.5] * 50_000}),
    ],
    ids=["fits", "error", "question", "too much to check"],
)
async def test_what_keeps_the_promise_passes_unchanged(kept: Outcome) -> None:
    assert await result_of(kept) is kept


async def test_without_a_promise_nothing_is_checked() -> None:
    free = Outcome("", {"count": "many"})
    assert await result_of(free, None) is free


@pytest.mark.parametrize(
    ("broken", "why"),
    [({"count": "two"}, "result.count must be of type integer"), ({}, "count")],
    ids=["wrong type", "nothing structured"],
)
async def test_what_breaks_it_is_an_error_that_says_so(
    broken: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = await result_of(Outcome("done", broken))
    assert found.is_error
    assert "tool 'counts' ran, but its result breaks its own output schema" in found.text
    assert why in found.text
    assert [record.getMessage() for record in caplog.records] == ["a tool broke its output schema"]


async def test_a_promise_that_we_cannot_check_is_not_taken_from_our_own_code() -> None:
    with pytest.raises(ValueError, match="unevaluatedProperties"):
        await result_of(Outcome(""), {"type": "object", "unevaluatedProperties": False})


async def served(tmp_path: Path, way: str) -> tuple[Tool, Outcome]:
    """The tool `structured` of a real server, and what a caller gets of it."""
    offered = asyncio.Event()
    capabilities = Capabilities()
    capabilities.tell(offered.set)
    registry = capabilities.tools
    spec = ServerSpec("small", (sys.executable, str(PROGRAM), "2025-11-25", way), BASE)
    servers = Servers([spec], tmp_path, capabilities)
    servers.start()
    try:
        async with asyncio.timeout(WAIT_MAX_S):
            while not list(registry):
                offered.clear()
                await offered.wait()
        tool = registry.require("small__structured", writer=True)
        return tool, await registry.call(tool, {}, WAIT_MAX_S, ignore)
    finally:
        await servers.stop(hurry=True)


async def test_servers_are_held_to_their_promise(tmp_path: Path) -> None:
    tool, found = await served(tmp_path, "honest")
    assert tool.output_schema is not None
    assert (found.is_error, found.structured) == (False, {"cancelled": 0})
    tool, found = await served(tmp_path, "liar")
    assert found.is_error
    assert "result.cancelled must be of type string" in found.text
    tool, found = await served(tmp_path, "vague")
    assert tool.output_schema is None, "what is not enforced is not passed on as a promise"
    assert not found.is_error
