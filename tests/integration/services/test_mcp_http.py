"""MCP over HTTP through the factory: the agent's endpoint unchanged, and a crew as one server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientError, web
from support.asking import assembled
from support.http_face import Caller, Face, tls
from support.site import Plant, Site, open_site, until
from support.tool_agents import ToolAgent, ToolAgents, tool
from support.valkey import ValkeyServer
from test_tool_registry import BUSY_MACHINE, VISIBLE_MAX_S, all_listed, asleep

from factory_server.api.http import mcp_listen, relay
from factory_server.api.tools import ToolServicer
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import Exhausted
from factory_server.core.lifecycle import AgentState
from factory_server.identity.agents import AgentIdentities
from factory_server.identity.directory import OPERATOR
from hyperfactory.v1 import tool_service_pb2
from wire import policy
from wire.identity import Identity, operator_spiffe
from wire.mcp.errors import HEADER_MISMATCH, INVALID_PARAMS, METHOD_NOT_FOUND, UNSUPPORTED_VERSION
from wire.mcp.revisions import STATELESS

CALLS = 2000
WITHIN_S = 10.0


class Mcp:
    """What an agent of these tests answers: what it was sent, with a stream or a pause where the tool says so."""

    def __init__(self, agent: ToolAgent) -> None:
        self.agent = agent
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.connections: set[int] = set()
        self.cancelled = 0
        self.breaks: asyncio.Event | None = None
        """Streams break off as soon as it is set."""
        agent.app.router.add_route("*", "/mcp", self.serve)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((dict(request.headers), body))
        self.connections.add(id(request.transport))
        if self.agent.refuses():
            data = {"reason": "DRAINING"}
            error = {"jsonrpc": "2.0", "id": 1, "error": {"code": 14, "message": "asleep", "data": data}}
            return web.json_response(error, status=503)
        found = json.loads(body) if body else {}
        name = found.get("params", {}).get("name")
        result = {"jsonrpc": "2.0", "id": found.get("id"), "result": {"agent": self.agent.name, "tool": name}}
        if name == "stream":
            return await self._stream(request, result)
        if name == "pour":
            return await self._pour(request)
        if name == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        return web.json_response(result, headers={"x-agent": "yes"})

    async def _pour(self, request: web.Request) -> web.StreamResponse:
        """Never ends by itself."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b": " + b"x" * 65536 + b"\n\n")
        finally:
            self.cancelled += 1

    async def _stream(self, request: web.Request, result: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if self.breaks is not None:
            await response.write(b": begun\n\n")
            await self.breaks.wait()
            assert request.transport is not None
            request.transport.close()
        for number in range(3):
            progress = {"method": "notifications/progress", "params": {"progress": number}}
            await response.write(b"data: " + json.dumps(progress).encode() + b"\n\n")
            await asyncio.sleep(0.01)
        await response.write(b"data: " + json.dumps(result).encode() + b"\n\n")
        return response


@pytest.fixture
def agents() -> ToolAgents:
    return ToolAgents(first=(tool("hang"), tool("stream"), tool("write"), tool("look", read_only=True)))


@pytest.fixture
def endpoints(agents: ToolAgents) -> dict[str, Mcp]:
    """The agents' endpoints by instance."""
    return agents.each(Mcp)


@pytest.fixture
async def site(
    postgres_url: str, valkey: ValkeyServer, agents: ToolAgents, endpoints: dict[str, Mcp]
) -> AsyncIterator[Site]:
    async with open_site(postgres_url, valkey.url, agent=agents.run) as opened:
        yield opened


@pytest.fixture
def admin(face: Face) -> Caller:
    return face.operator()


def of(endpoints: dict[str, Mcp], name: str) -> Mcp:
    found = [e for e in endpoints.values() if e.agent.name == name]
    return found[-1]


def mate(plant: Plant, agent: Any) -> Identity:
    """What this agent shows, as whoever shares its crew."""
    who = plant.factory.who
    message = AgentIdentities(who.ca, who.mint).identify(agent)
    return Identity(message.certificate_pem, message.key_pem, message.ca_pem, message.token)


def call(name: str, identifier: int = 7, **more: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": {"text": "ä"}, **more}
    return {"jsonrpc": "2.0", "id": identifier, "method": "tools/call", "params": params}


async def test_an_agent_gets_what_was_sent_and_who_sent_it(
    plant: Plant, admin: Caller, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant)
    agent = crew.agents[0]
    body = b'{"jsonrpc":"2.0", "id":7,\n "method":"any/thing"}'
    answer = await admin.ask(
        f"/agents/{agent.id}/mcp",
        body,
        mcp_name="some",
        x_hyperfactory_scopes="admin coder",
        x_hyperfactory_caller="spiffe://hyperfactory.local/factory",
    )
    assert (answer.status, answer.json()["result"]["agent"]) == (200, "w")
    assert answer.headers["x-agent"] == "yes"
    [(headers, got)] = of(endpoints, "w").seen
    assert got == body
    assert headers["Host"] == f"w.crew-{crew.id}.svc"
    said = {name.lower(): value for name, value in headers.items()}
    assert said["mcp-name"] == "some"
    assert said["x-hyperfactory-caller"] == "spiffe://hyperfactory.local/operator/local"
    assert said["x-hyperfactory-scopes"] == "admin"
    assert "authorization" not in said


async def test_a_foreign_host_or_origin_is_the_agents_to_refuse(
    plant: Plant, admin: Caller, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant)
    path = f"/agents/{crew.agents[0].id}/mcp"
    await admin.ask(path, b"{}", host="evil.example", origin="https://evil.example")
    await admin.ask(path, b"{}", host="factory.svc", origin="https://factory.svc")
    seen = [{k.lower(): v for k, v in headers.items()} for headers, _ in of(endpoints, "w").seen]
    authority = f"w.crew-{crew.id}.svc"
    assert [(s["host"], s["origin"]) for s in seen] == [
        ("evil.example", "https://evil.example"),
        (authority, f"https://{authority}"),
    ]


async def test_a_stream_passes_as_it_comes(plant: Plant, admin: Caller):
    crew = await assembled(plant)
    async with admin.post(f"/agents/{crew.agents[0].id}/mcp", call("stream")) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        pieces = [piece async for piece in answer.content.iter_any()]
    assert len(pieces) > 1
    assert b"".join(pieces).count(b"data: ") == 4


async def test_who_goes_away_is_not_worked_for(
    plant: Plant, face: Face, admin: Caller, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    for path, name in ((f"/agents/{crew.agents[0].id}/mcp", "hang"), (f"/crews/{crew.id}/mcp", "w__hang")):
        with pytest.raises((ClientError, TimeoutError)):
            async with asyncio.timeout(0.3):
                await admin.ask(path, call(name))
        await until(lambda: of(endpoints, "w").cancelled, what="the agent's call has ended")
        of(endpoints, "w").cancelled = 0
    assert plant.factory.upstreams.counts()[0] == 0


async def test_an_answer_that_breaks_off_does_not_look_whole(
    plant: Plant, admin: Caller, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    for path, name in (
        (f"/agents/{crew.agents[0].id}/mcp", "stream"),
        (f"/crews/{crew.id}/mcp", "w__stream"),
    ):
        breaks = of(endpoints, "w").breaks = asyncio.Event()
        async with admin.post(path, call(name)) as answer:
            assert answer.status == 200
            assert await answer.content.readuntil(b"\n\n") == b": begun\n\n"
            breaks.set()
            with pytest.raises(ClientError):
                await answer.read()


async def test_who_does_not_read_is_gone(
    plant: Plant, admin: Caller, endpoints: dict[str, Mcp], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(relay, "WRITE_MAX_S", 0.3)
    crew = await assembled(plant)
    async with admin.post(f"/agents/{crew.agents[0].id}/mcp", call("pour")) as answer:
        assert answer.status == 200
        await until(lambda: of(endpoints, "w").cancelled, what="the agent works no more")


async def test_nobody_is_found_where_nobody_is(plant: Plant, admin: Caller):
    for path in ("/agents/a-nobody/mcp", "/crews/c-nobody/mcp"):
        answer = await admin.modern(path, "tools/list")
        assert answer.status == 404
        assert answer.json()["error"]["code"] == INVALID_PARAMS


async def test_an_agent_reaches_its_own_crew_only(plant: Plant, face: Face):
    one, two = await assembled(plant), await assembled(plant)
    await all_listed(plant, one.id, 4)
    caller = face.caller(mate(plant, one.agents[0]))
    assert (await caller.ask(f"/agents/{one.agents[0].id}/mcp", b"{}")).status == 200
    assert (await caller.modern(f"/crews/{one.id}/mcp", "tools/list")).status == 200
    assert (await caller.ask(f"/agents/{two.agents[0].id}/mcp", b"{}")).status == 403
    assert (await caller.modern(f"/crews/{two.id}/mcp", "tools/list")).status == 403


async def test_a_sleeper_is_woken_and_one_that_falls_asleep_is_asked_again(
    plant: Plant, admin: Caller, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant)
    agent = crew.agents[0]
    await asleep(plant, agent.id)
    assert (await admin.ask(f"/agents/{agent.id}/mcp", call("look"))).status == 200
    assert (await plant.store.get_agent(agent.id)).state is AgentState.READY
    of(endpoints, "w").agent.drowsy = 2
    assert (await admin.ask(f"/agents/{agent.id}/mcp", call("look"))).status == 200


async def test_a_crew_lists_its_tools_for_whoever_asks(plant: Plant, face: Face, admin: Caller):
    crew = await assembled(plant, agents=2)
    await all_listed(plant, crew.id, 8)
    path = f"/crews/{crew.id}/mcp"
    discovered = (await admin.modern(path, "server/discover")).json()["result"]
    assert STATELESS in discovered["supportedVersions"]
    assert discovered["capabilities"] == {
        "tools": {"listChanged": True},
        "resources": {"listChanged": True},
        "extensions": {"io.modelcontextprotocol/skills": {}},
    }
    listed = (await admin.modern(path, "tools/list")).json()["result"]
    assert [t["name"] for t in listed["tools"]] == [
        f"w-{n}__{t}" for n in (1, 2) for t in ("hang", "look", "stream", "write")
    ]
    assert (listed["resultType"], listed["cacheScope"]) == ("complete", "private")
    assert listed["tools"][1]["annotations"] == {"readOnlyHint": True}
    reviewer = face.operator(["reviewer"])
    narrow = (await reviewer.modern(path, "tools/list")).json()["result"]["tools"]
    assert [t["name"] for t in narrow] == ["w-1__look", "w-2__look"]
    foreign = await admin.modern(path, "tools/list", {"cursor": "not-ours"})
    assert foreign.json()["error"]["code"] == INVALID_PARAMS


async def test_a_crews_call_goes_to_its_agent_under_its_own_name(
    plant: Plant, admin: Caller, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant, agents=2)
    await all_listed(plant, crew.id, 8)
    params = {
        "name": "w-2__write",
        "arguments": {"text": "ä", "deep": [1, {"a": None}]},
        "requestState": "kept",
        "inputResponses": {"a": {"action": "accept"}},
        "_meta": {"progressToken": "p", "vendor.example/x": 1},
    }
    answer = await admin.modern(
        f"/crews/{crew.id}/mcp", "tools/call", params, mcp_param_text="=?base64?w6Q=?="
    )
    assert answer.json()["result"] == {"agent": "w-2", "tool": "write"}
    [(headers, body)] = of(endpoints, "w-2").seen
    said = {name.lower(): value for name, value in headers.items()}
    assert (said["mcp-name"], said["mcp-param-text"]) == ("write", "=?base64?w6Q=?=")
    got = json.loads(body)["params"]
    assert got["name"] == "write"
    sent = {key: value for key, value in params.items() if key != "name"}
    assert {key: got[key] for key in sent} == sent


async def test_what_the_body_names_is_what_is_authorised(
    plant: Plant, face: Face, admin: Caller, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    path = f"/crews/{crew.id}/mcp"
    reviewer = face.operator(["reviewer"])
    honest = await reviewer.modern(path, "tools/call", {"name": "w__write"})
    assert (honest.status, honest.json()["error"]["data"]["reason"]) == (403, "SCOPE_MISSING")
    for caller in (reviewer, admin):
        lies = await caller.modern(path, "tools/call", {"name": "w__write"}, mcp_name="w__look")
        assert (lies.status, lies.json()["error"]["code"]) == (400, HEADER_MISMATCH)
    old = await admin.ask(path, call("w__write"), mcp_protocol_version="2025-11-25", mcp_name="w__look")
    assert old.json()["error"]["code"] == HEADER_MISMATCH
    assert not of(endpoints, "w").seen
    unknown = await admin.modern(path, "tools/call", {"name": "w__nothing"})
    assert unknown.json()["error"]["code"] == INVALID_PARAMS
    method = await admin.modern(path, "prompts/list")
    assert (method.status, method.json()["error"]["code"]) == (404, METHOD_NOT_FOUND)
    future = await admin.ask(
        path, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, mcp_protocol_version="2030-01-01"
    )
    assert future.json()["error"]["code"] == UNSUPPORTED_VERSION


async def test_a_name_that_comes_twice_in_a_body_is_one_to_everybody(
    plant: Plant, face: Face, endpoints: dict[str, Mcp]
):
    """JSON allows it; whoever authorises and whoever obeys must read the same."""
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"w__write","name":"w__look"}}'
    answer = await face.operator(["reviewer"]).ask(f"/crews/{crew.id}/mcp", body)
    assert answer.json()["result"]["tool"] == "look"
    assert b"write" not in of(endpoints, "w").seen[-1][1]


async def test_a_listener_hears_of_a_change_at_once(plant: Plant, admin: Caller, agents: ToolAgents):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    meta = {
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": params}
    headers = {"mcp_protocol_version": STATELESS, "mcp_method": "subscriptions/listen"}
    took_s = []
    async with admin.post(f"/crews/{crew.id}/mcp", body, **headers) as stream:
        assert b"acknowledged" in await stream.content.readuntil(b"\n\n")
        for number in range(5):
            began = time.monotonic()
            agents.live["w"].offer(tool(f"t{number}"))
            event = await stream.content.readuntil(b"\n\n")
            took_s.append(time.monotonic() - began)
            assert b"notifications/tools/list_changed" in event
            assert b'"io.modelcontextprotocol/subscriptionId":"l"' in event
            listed = (await admin.modern(f"/crews/{crew.id}/mcp", "tools/list")).json()["result"]["tools"]
            assert [t["name"] for t in listed] == [f"w__t{number}"]
    assert min(took_s) < VISIBLE_MAX_S
    assert max(took_s) < VISIBLE_MAX_S * BUSY_MACHINE


async def test_the_handshake_era_is_served_too(
    plant: Plant, admin: Caller, agents: ToolAgents, endpoints: dict[str, Mcp]
):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    path = f"/crews/{crew.id}/mcp"
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    begun = await admin.ask(path, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
    assert begun.json()["result"]["protocolVersion"] == "2025-11-25"
    session = {"mcp_session_id": begun.headers["mcp-session-id"], "mcp_protocol_version": "2025-11-25"}
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await admin.ask(path, told, **session)).status == 202
    listed = await admin.ask(path, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, **session)
    assert len(listed.json()["result"]["tools"]) == 4
    assert (await admin.ask(path, call("w__look"), **session)).json()["result"]["tool"] == "look"
    async with asyncio.TaskGroup() as group:
        hanging = group.create_task(admin.ask(path, call("w__hang", 9), **session))
        await until(lambda: b"hang" in of(endpoints, "w").seen[-1][1], what="the call has begun")
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
        other = session | {"mcp_session_id": "f" * 32}
        await admin.ask(path, cancel, **other)
        assert not hanging.done()
        await admin.ask(path, cancel, **session)
    assert hanging.result().status == 202
    await until(lambda: of(endpoints, "w").cancelled == 1, what="the agent's call has ended")


async def test_many_calls_leave_no_connections(plant: Plant, admin: Caller, endpoints: dict[str, Mcp]):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    path = f"/crews/{crew.id}/mcp"
    left = iter(range(CALLS))

    async def some() -> None:
        for _ in left:
            answer = await admin.ask(path, call("w__look"))
            assert answer.status == 200

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(some())
    lent, resting = plant.factory.upstreams.counts()
    assert lent == 0
    assert resting <= 8
    assert len(of(endpoints, "w").seen) == CALLS
    assert len(of(endpoints, "w").connections) <= 8


async def test_nobody_takes_all_the_streams(plant: Plant, face: Face, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mcp_listen, "OF_CALLER_MAX", 1)
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    path = f"/crews/{crew.id}/mcp"
    greedy, other = face.operator(), face.caller(mate(plant, crew.agents[0]))
    wanted = {"notifications": {"toolsListChanged": True}}
    async with listening(greedy, path):
        refused = await greedy.modern(path, "subscriptions/listen", wanted)
        assert (refused.status, refused.json()["error"]["code"]) == (429, 8)
        async with listening(other, path) as answer:
            assert answer.status == 200

    async def room() -> bool:
        async with listening(greedy, path) as answer:
            return bool(answer.status == 200)

    await until(room, what="a stream that ended leaves room")


def listening(caller: Caller, path: str) -> Any:
    """The GET stream."""
    headers = {"accept": "text/event-stream", "authorization": f"Bearer {caller.identity.token}"}
    return caller.session.get(caller.url + path, headers=headers, ssl=tls(caller.identity))


async def test_a_caller_that_calls_too_often_is_told_when_to_come_back(plant: Plant, face: Face):
    crew = await assembled(plant)
    await all_listed(plant, crew.id, 4)
    paths = (f"/crews/{crew.id}/mcp", f"/agents/{crew.agents[0].id}/mcp")
    greedy, other = face.operator(), face.caller(mate(plant, crew.agents[0]))
    plant.factory.rates.per_s = 0.01
    assert (await greedy.ask(paths[0], call("w__look"))).status == 200
    for path in paths:
        refused = await greedy.ask(path, call("w__look"))
        assert (refused.status, refused.json()["error"]["code"]) == (429, 8)
        assert int(refused.headers["retry-after"]) > 1
    assert (await other.ask(paths[1], call("look"))).status == 200
    codec = CursorCodec(await plant.store.secret("cursors"))
    request = tool_service_pb2.ToolServiceCallToolRequest(crew=crew.id, name="w__look")
    spiffe = operator_spiffe(OPERATOR)
    policy.set_caller(policy.Caller(policy.Principal.OPERATOR, spiffe, OPERATOR, scopes=frozenset({"admin"})))
    with pytest.raises(Exhausted):
        await anext(aiter(ToolServicer(plant.factory.tool_uses(codec)).CallTool(request, None)))


SMUGGLED = (
    b"POST /mcp HTTP/1.1\r\nhost: localhost\r\nx-hyperfactory-scopes: admin\r\ncontent-length: 2\r\n\r\n{}"
)
TWO_ENDS = [
    (["transfer-encoding: chunked", f"content-length: {5 + len(SMUGGLED)}"], b"0\r\n\r\n" + SMUGGLED),
    (["content-length: 4", "transfer-encoding: chunked"], b"5c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n"),
    (["transfer-encoding: chunked", "transfer-encoding: identity"], b"0\r\n\r\n" + SMUGGLED),
    (["transfer-encoding: xchunked"], b"0\r\n\r\n" + SMUGGLED),
    (["transfer-encoding : chunked"], b"0\r\n\r\n" + SMUGGLED),
    (["transfer-encoding: \x0bchunked"], b"0\r\n\r\n" + SMUGGLED),
    (["content-length: 2", f"content-length: {2 + len(SMUGGLED)}"], b"{}" + SMUGGLED),
    (["content-length: 2, 2"], b"{}"),
    (["content-length: +2"], b"{}"),
    (["transfer-encoding: chunked"], b"2\n{}\n0\n\n"),
    (["transfer-encoding: chunked"], b"-2\r\n{}\r\n0\r\n\r\n"),
    (["mcp-name: a\rx-hyperfactory-scopes: admin", "content-length: 2"], b"{}"),
    (["mcp-name: a\nx-hyperfactory-scopes: admin", "content-length: 2"], b"{}"),
    (["mcp-name: a\x00b", "content-length: 2"], b"{}"),
    (["mcp-name: a\r\n b", "content-length: 2"], b"{}"),
    (["host: evil.example", "content-length: 2"], b"{}"),
]
ONE_END = [
    (["connection: x-hyperfactory-scopes, close", "content-length: 2"], b"{}"),
    (["x_hyperfactory_scopes: admin", "connection: close", "content-length: 2"], b"{}"),
    (
        ["transfer-encoding: chunked", "connection: close"],
        b"2\r\n{}\r\n0\r\nx-hyperfactory-scopes: admin\r\n\r\n",
    ),
    (["transfer-encoding: chunked", "connection: close"], b"2;a=b\r\n{}\r\n0\r\n\r\n"),
]


async def test_no_request_hides_in_another(plant: Plant, face: Face, endpoints: dict[str, Mcp]):
    """What two readers could read in two ways is refused; whatever comes after it is not read."""
    crew = await assembled(plant)
    seen = of(endpoints, "w").seen
    reviewer = face.operator(["reviewer"])
    path = f"/agents/{crew.agents[0].id}/mcp"
    for lines, body in TWO_ENDS:
        assert b" 400 " in (await sent_raw(reviewer, face.port, path, lines, body)).partition(b"\r\n")[0], (
            lines
        )
        assert not seen, lines
    for lines, body in ONE_END:
        assert b" 200 " in (await sent_raw(reviewer, face.port, path, lines, body)).partition(b"\r\n")[0], (
            lines
        )
        [(headers, got)] = seen
        assert ({k.lower(): v for k, v in headers.items()}["x-hyperfactory-scopes"], got) == (
            "reviewer",
            b"{}",
        )
        seen.clear()


async def sent_raw(caller: Caller, port: int, path: str, lines: list[str], body: bytes) -> bytes:
    """All that is answered to these bytes; the connection ends after it."""
    own = [f"POST {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {caller.identity.token}"]
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls(caller.identity), server_hostname="localhost"
    )
    try:
        writer.write("\r\n".join([*own, *lines]).encode("latin-1") + b"\r\n\r\n" + body)
        async with asyncio.timeout(WITHIN_S):
            return await reader.read()
    finally:
        writer.close()
