"""The agent's HTTP socket: who may call, what malformed requests get, streams, and clients that go away."""

from __future__ import annotations

from tests.integration.agent_runtime.parts import World
from tests.support.mcp import Http, Mcp


async def test_health_tells_whether_somebody_is_at_home(world: World) -> None:
    http = Http((await world.agent()).runtime.paths.http)
    assert (await http.send("GET", "/health", {})).json() == {"status": "SERVING"}


async def test_a_tool_is_listed_and_called(world: World) -> None:
    mcp = Mcp((await world.agent()).runtime.paths.http)
    assert "write_file" in [tool["name"] for tool in (await mcp.ask("tools/list"))["tools"]]
    await mcp.call("write_file", path="a.txt", content="hello")
    assert (await mcp.call("read_file", path="a.txt"))["content"] == [{"type": "text", "text": "hello"}]
