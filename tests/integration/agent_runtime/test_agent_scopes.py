"""One rule of scopes on both sides: what the factory lists to a caller is what the agent lets this caller call."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from agent_runtime import translate
from agent_runtime.tools.registry import Call, Outcome, Tool
from factory_server.core import tools
from tests.integration.agent_runtime.parts import World
from tests.support.mcp import CODER, Mcp, McpFailure
from wire.tokens import SCOPES

CALLERS = [frozenset(some) for count in (1, 2, 3) for some in combinations(sorted(SCOPES), count)]
DENIED = 7


async def done(_call: Call) -> Outcome:
    return Outcome("done")


def every_kind() -> list[Tool]:
    return [
        Tool(
            f"{'reads' if read_only else 'writes'}-{scope}",
            "",
            {"type": "object"},
            done,
            read_only,
            scope=scope,
        )
        for read_only, scope in product((True, False), ("", *sorted(SCOPES)))
    ]


@pytest.mark.parametrize("own", sorted(SCOPES))
async def test_a_callers_list_is_what_it_may_call(world: World, own: str) -> None:
    agent = await world.agent(spec={"scope": own})
    runtime = agent.runtime.agent()
    runtime.parts.registry.replace("every kind", every_kind())
    told = {found.name: found for found in translate.report(runtime).tools}
    for scopes in CALLERS:
        mcp = Mcp(agent.runtime.paths.http, {**CODER, "x-hyperfactory-scopes": " ".join(scopes)})
        listed = {found["name"] for found in (await mcp.ask("tools/list"))["tools"]}
        assert {name for name, found in told.items() if tools.may_use(found, scopes)} == listed
        for tool in every_kind():
            assert (await allowed(mcp, tool.name)) == (tool.name in listed), (own, scopes, tool.name)


async def allowed(mcp: Mcp, name: str) -> bool:
    try:
        await mcp.call(name)
    except McpFailure as refused:
        assert refused.code == DENIED
        return False
    return True
