"""The official MCP conformance suite against one agent directly, in both eras."""

from __future__ import annotations

import pytest

from tests.integration.agent_runtime.parts import World
from tests.support import mcp_fixture
from tests.support.conformance import REVISIONS, assert_conforms, run_suite
from tests.support.forwarder import forwarded, to_socket
from tests.support.mcp import CODER, Mcp

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_all_of_the_suite_that_applies_passes(world: World, revision: str) -> None:
    agent = await world.agent(spec={"entry_point": f"{mcp_fixture.__name__}:Fixture"})
    socket = agent.runtime.paths.http
    tools = {tool["name"] for tool in (await Mcp(socket).ask("tools/list"))["tools"]}
    assert set(mcp_fixture.SIMPLE) | set(mcp_fixture.ASKING) <= tools
    async with forwarded(to_socket(socket), CODER) as url:
        await assert_conforms(f"{url}/mcp", revision)


async def test_the_suite_finds_what_is_missing(world: World) -> None:
    agent = await world.agent()
    async with forwarded(to_socket(agent.runtime.paths.http), CODER) as url:
        verdict = await run_suite(f"{url}/mcp", "--scenario", "prompts-get-simple")
    assert verdict.code != 0
    assert "prompts-get-simple" in verdict.failures
