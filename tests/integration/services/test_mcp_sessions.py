"""Sessions at a crew's URL: what they open at agents, how questions find their way back, and when they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientError, web
from support.asking import assembled, disbanded, stopped
from support.http_face import Answer, Caller, Face
from support.site import Plant, Site, open_site, until
from support.tool_agents import ToolAgent, ToolAgents, tool
from support.valkey import ValkeyServer
from test_tool_registry import all_listed, asleep

from factory_server.api.http import mcp_sessions
from wire.mcp.revisions import SESSION_HEADER

REVISION = {"mcp_protocol_version": "2025-06-18"}
CAPABILITIES = {"elicitation": {}, "experimental": {"x": {"y": 1}}}
INFO = {"name": "t", "version": "1"}
TOOLS = ("ask", "hang", "look")


class Asker:
    """An agent of the handshake era whose questions all have the id 1."""

    def __init__(self, agent: ToolAgent) -> None:
        self.agent = agent
        self.begun: list[Any] = []
        self.sessions: dict[str, asyncio.Future[Any]] = {}
        self.ended: list[str] = []
        self.seen: list[tuple[str, Any]] = []
        self.called: list[Any] = []
        self.cancelled = 0
        agent.app.router.add_route("*", "/mcp", self.serve)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        session = request.headers.get(SESSION_HEADER, "")
        body = await request.read()
        found = json.loads(body) if body else {}
        if self.agent.refuses():
            error = {"code": 14, "message": "asleep", "data": {"reason": "DRAINING"}}
            return web.json_response({"jsonrpc": "2.0", "id": 1, "error": error}, status=503)
        self.seen.append((session, found))
        if found.get("method") == "initialize":
            return self._begin(found)
        if session and session not in self.sessions:
            return web.Response(status=404)
        if request.method == "DELETE":
            self.ended.append(session)
            del self.sessions[session]
            return web.Response(status=204)
        if "id" not in found or "method" not in found:
            if "id" in found:
                assert found["id"] == 1
                self.sessions[session].set_result(found["result"])
            return web.Response(status=202)
        return await self._call(request, found, session)

    def _begin(self, found: Any) -> web.Response:
        self.begun.append(found["params"])
        session = f"s{len(self.begun)}"
        self.sessions[session] = asyncio.get_running_loop().create_future()
        result = {"protocolVersion": found["params"]["protocolVersion"], "capabilities": {}}
        answer = {"jsonrpc": "2.0", "id": found["id"], "result": result}
        return web.json_response(answer, headers={SESSION_HEADER: session})

    async def _call(self, request: web.Request, found: Any, session: str) -> web.StreamResponse:
        name = found.get("params", {}).get("name")
        self.called.append(found["id"])
        result = {"agent": self.agent.name, "session": session}
        if name == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        if name != "ask":
            return web.json_response({"jsonrpc": "2.0", "id": found["id"], "result": result})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        question = {"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {}}
        await response.write(b"data: " + json.dumps(question).encode() + b"\n\n")
        try:
            result["answer"] = await asyncio.shield(self.sessions[session])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.sessions[session] = asyncio.get_running_loop().create_future()
        said = {"jsonrpc": "2.0", "id": found["id"], "result": result}
        await response.write(b"data: " + json.dumps(said).encode() + b"\n\n")
        return response


@pytest.fixture
def village() -> ToolAgents:
    return ToolAgents(first=tuple(map(tool, TOOLS)))


@pytest.fixture
def made(village: ToolAgents) -> dict[str, Asker]:
    """The agents' endpoints by instance."""
    return village.each(Asker)


@pytest.fixture
async def site(
    postgres_url: str, valkey: ValkeyServer, village: ToolAgents, made: dict[str, Asker]
) -> AsyncIterator[Site]:
    async with open_site(postgres_url, valkey.url, agent=village.run) as opened:
        yield opened


@dataclass
class Client:
    """A client with a session."""

    caller: Caller
    path: str
    headers: dict[str, str]

    async def call(self, name: str, identifier: Any = 7) -> Answer:
        return await self.caller.ask(self.path, message("tools/call", identifier, name=name), **self.headers)

    async def tell(self, body: Any) -> int:
        return (await self.caller.ask(self.path, body, **self.headers)).status

    async def end(self) -> int:
        return await self.caller.delete(self.path, **self.headers)

    @asynccontextmanager
    async def asked(self, name: str, identifier: Any) -> AsyncIterator[Any]:
        """A call on its way, and the id of the first question."""
        body = message("tools/call", identifier, name=name)
        async with self.caller.post(self.path, body, **self.headers) as answer:
            yield answer.content, event(await answer.content.readuntil(b"\n\n"))["id"]


def message(method: str, identifier: Any, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}


def event(data: bytes) -> Any:
    return json.loads(data.partition(b"data: ")[2])


async def begun(caller: Caller, crew: str, capabilities: Any = CAPABILITIES) -> Client:
    params = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "clientInfo": INFO}
    answer = await caller.ask(f"/crews/{crew}/mcp", message("initialize", 0, **params))
    assert answer.json()["result"]["protocolVersion"] == "2025-06-18"
    assert answer.json()["result"]["capabilities"]["logging"] == {}
    return Client(
        caller, f"/crews/{crew}/mcp", {"mcp_session_id": answer.headers[SESSION_HEADER], **REVISION}
    )


def at(made: dict[str, Asker], name: str) -> Asker:
    return next(asker for asker in made.values() if asker.agent.name == name)


async def test_questions_with_one_id_find_their_agents(plant: Plant, face: Face, made: dict[str, Asker]):
    crew = await assembled(plant, agents=2)
    await all_listed(plant, crew.id, 6)
    client = await begun(face.operator(), crew.id)
    assert face.crews.counts() == (1, 0)
    async with client.asked("w-1__ask", 1) as (one, first), client.asked("w-2__ask", 2) as (two, second):
        assert first != second
        stranger = await begun(face.operator(), crew.id)
        answer = {"jsonrpc": "2.0", "result": {"said": "to nobody"}}
        assert await stranger.tell({**answer, "id": first}) == 202
        assert await client.tell({**answer, "id": second, "result": {"said": "to w-2"}}) == 202
        assert await client.tell({**answer, "id": first, "result": {"said": "to w-1"}}) == 202
        for stream, agent in ((two, "w-2"), (one, "w-1")):
            result = event(await stream.readuntil(b"\n\n"))["result"]
            assert result == {"agent": agent, "session": "s1", "answer": {"said": f"to {agent}"}}
        assert await client.tell({**answer, "id": first}) == 202  # nobody waits for it any more
    assert (await face.operator().ask(client.path, {**answer, "id": first})).status == 400
    async with client.asked("w-1__ask", 3) as (stream, open_one):
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}}
        assert await client.tell(cancel) == 202
        with pytest.raises((ClientError, asyncio.IncompleteReadError)):
            await stream.readuntil(b"\n\n")
        await until(lambda: at(made, "w-1").cancelled, what="the agent waits no longer")
        assert await client.tell({**answer, "id": open_one}) == 202
    assert [said for _, said in at(made, "w-1").seen if "result" in said][1:] == []
    for agent in ("w-1", "w-2"):
        [said] = at(made, agent).begun
        assert said == {"protocolVersion": "2025-06-18", "capabilities": CAPABILITIES, "clientInfo": INFO}


async def test_a_session_at_an_agent_is_begun_once_and_anew_where_the_agent_forgot(
    plant: Plant, face: Face, made: dict[str, Asker]
):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 3)
    client = await begun(face.operator(), crew.id)
    for number in range(5):
        answer = await client.call("w__look", number)
        assert answer.json()["result"]["session"] == "s1"
        assert SESSION_HEADER not in answer.headers
    assert await client.tell(message("logging/setLevel", 9, level="error")) == 200
    agent = at(made, "w")
    agent.sessions.clear()
    assert (await client.call("w__look")).json()["result"]["session"] == "s2"
    methods = [said.get("method") for session, said in agent.seen if session == "s2"]
    assert methods == ["notifications/initialized", "logging/setLevel", "tools/call"]
    dumb = await begun(face.operator(), crew.id, {})
    assert (await dumb.call("w__look")).json()["result"]["session"] == ""
    assert len(agent.begun) == 2
    await asleep(plant, crew.agents[0].id)
    assert (await client.call("w__look")).json()["result"]["session"] == "s1"  # the first of another instance
    assert len(made) == 2
    assert face.crews.counts() == (2, 1)


async def test_a_session_ends_for_all(
    plant: Plant, face: Face, made: dict[str, Asker], monkeypatch: pytest.MonkeyPatch
):
    """By its client, by its age, with its agent, with its crew; and it is nobody else's."""
    crew = await assembled(plant, agents=2)
    await all_listed(plant, crew.id, 6)
    client = await begun(face.operator(), crew.id)
    await client.call("w-1__look")
    async with asyncio.TaskGroup() as group:
        hanging = group.create_task(client.call("w-2__hang", "h"))
        await until(lambda: "h" in at(made, "w-2").called, what="the call has begun")
        assert face.crews.counts() == (1, 2)
        assert await client.end() == 204
    assert hanging.result().status == 202
    await until(lambda: at(made, "w-2").cancelled, what="the call is not worked for")
    assert [at(made, name).ended for name in ("w-1", "w-2")] == [["s1"], ["s1"]]
    assert face.crews.counts() == (0, 0)
    assert (await client.call("w-1__look")).status == 404
    assert await client.tell({"jsonrpc": "2.0", "method": "notifications/initialized"}) == 404
    assert await client.end() == 404
    old = await begun(face.operator(), crew.id)
    await old.call("w-1__look")
    monkeypatch.setattr(mcp_sessions, "IDLE_MAX_S", 0.0)
    assert (await old.call("w-1__look")).status == 404
    assert face.crews.counts() == (0, 0)
    monkeypatch.undo()
    last = await begun(face.operator(), crew.id)
    for name in ("w-1__look", "w-2__look"):
        await last.call(name)
    await stopped(plant, crew.agents[0].id)
    await until(lambda: face.crews.counts() == (1, 1), what="the stopped agent's is forgotten")
    await disbanded(plant, crew.id)
    await until(lambda: face.crews.counts() == (0, 0), what="the crew's are forgotten")


async def test_room_is_made_among_those_who_have_most(
    plant: Plant, face: Face, monkeypatch: pytest.MonkeyPatch
):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 3)
    monkeypatch.setattr(mcp_sessions, "OF_CALLER_MAX", 3)
    monkeypatch.setattr("factory_server.api.http.mcp_agents.OF_AGENT_MAX", 2)
    clients = [await begun(face.operator(), crew.id) for _ in range(3)]
    for client in clients:
        assert (await client.call("w__look")).status == 200
    assert face.crews.counts() == (3, 2)
    await begun(face.operator(), crew.id)
    statuses = [(await client.call("w__look")).status for client in clients]
    assert statuses == [404, 200, 200]
    huge = {"experimental": {"x": {"y": "a" * mcp_sessions.CLIENT_MAX_BYTES}}}
    params = {"protocolVersion": "2025-06-18", "capabilities": huge, "clientInfo": INFO}
    refused = await face.operator().ask(clients[0].path, message("initialize", 0, **params))
    assert "bytes" in refused.json()["error"]["message"]
