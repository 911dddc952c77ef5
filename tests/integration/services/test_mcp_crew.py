"""A crew's URL in both eras, with real agents and the official client: agents ask their callers back, skills are
gathered, and what stands behind a session ends with it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import mcp_types as types
import pytest
from mcp import Client as McpClient
from mcp import MCPError
from support.asking import ACTOR, assembled, request_id
from support.conformance import run_suite
from support.forwarder import Pair, forwarded
from support.http_face import Caller, Face, tls
from support.packs import archive, tool, with_tools
from support.site import Plant, until

from factory_server.core import model
from factory_server.core.skills import PackRow
from factory_server.services import profiles, skills
from hyperfactory.v1 import profile_service_pb2
from hyperfactory.v1 import skill_service_pb2 as pb
from tests.support import mcp_fixture
from wire.mcp.errors import INVALID_PARAMS
from wire.mcp.revisions import META_CLIENT_CAPABILITIES, META_VERSION, STATELESS

pytestmark = pytest.mark.timeout(240)

MEMBERS = [{"name": name, "profile": "conformance"} for name in ("a", "b")]
SCENARIOS = {"sep-2640-skills-enumeration": 32, "sep-2640-skills-manifest": 6}


@pytest.fixture
async def crew(plant: Plant) -> model.CrewRow:
    """Two agents of the conformance suite's profile. It is imported by the name that they load it by: both do at
    once, in this one process."""
    request = profile_service_pb2.CreateProfileRequest(request_id=request_id())
    request.profile.name = "conformance"
    request.profile.spec.entry_point = f"{mcp_fixture.__name__}:Fixture"
    await profiles.create(plant.parts, request, "operator/alice")
    made = await assembled(plant, members=MEMBERS)
    names = {f"{name}__test_sampling" for name in ("a", "b")}
    await until(lambda: names <= plant.factory.tools.of_crew(made.id).keys(), what="both have tools")
    return made


@pytest.fixture
async def url(face: Face, crew: model.CrewRow) -> AsyncIterator[str]:
    """The crew's, for clients that bring no identity."""
    caller = face.operator(["coder"])

    async def dial() -> Pair:
        return await asyncio.open_connection(
            "127.0.0.1", face.port, ssl=tls(caller.identity), server_hostname="localhost"
        )

    async with forwarded(dial, {"authorization": f"Bearer {caller.identity.token}"}) as base:
        yield f"{base}/crews/{crew.id}/mcp"


class Person:
    """Who sits at the client: fills forms, and has a model and roots."""

    async def elicit(self, _context: Any, params: Any) -> types.ElicitResult:
        return types.ElicitResult(action="accept", content={"username": params.message, "email": "a@b"})

    async def sample(self, _context: Any, params: Any) -> types.CreateMessageResult:
        said = params.messages[0].content
        said = said[0] if isinstance(said, list) else said
        content = types.TextContent(type="text", text=f"about {said.text}")
        return types.CreateMessageResult(role="assistant", content=content, model="m")

    async def roots(self, _context: Any) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri="file:///w")])

    def client(self, url: str, mode: str) -> McpClient:
        return McpClient(
            url,
            mode=mode,
            elicitation_callback=self.elicit,
            sampling_callback=self.sample,
            list_roots_callback=self.roots,
        )


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_agents_ask_their_callers_back(face: Face, url: str, mode: str):
    """Two agents at once, each its own questions, within sessions of the client's in the handshake era; and they
    ask for nothing that the caller has not said that it can."""
    heard: list[float] = []

    async def progress(done: float, _total: float | None, _message: str | None) -> None:
        heard.append(done)

    async with Person().client(url, mode) as mcp:
        forms = [(f"{name}__test_elicitation", {"message": f"who, {name}?"}) for name in ("a", "b", "a")]
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(mcp.call_tool(name, arguments)) for name, arguments in forms]
        for (_, arguments), task in zip(forms, asked, strict=True):
            assert f'"username": "{arguments["message"]}"' in str(task.result().content)
        found = await mcp.call_tool("b__test_sampling", {"prompt": "Rome"})
        assert "LLM response: about Rome" in str(found.content)
        roots = await mcp.call_tool("a__test_input_required_result_list_roots", {})
        assert "state-ok: ['client_roots']" in str(roots.content)
        await mcp.call_tool("a__test_tool_with_progress", {}, progress_callback=progress)
        assert heard == [0.0, 0.5, 1.0]
        assert face.crews.counts() == ((1, 2) if mode == "legacy" else (0, 0))
    await until(lambda: face.crews.counts() == (0, 0), what="sessions have ended")
    async with McpClient(url, mode=mode, list_roots_callback=Person().roots) as mcp:
        found = await mcp.call_tool("a__test_input_required_result_capabilities", {})
        assert "asked and answered" not in str(found.content)
        with pytest.raises(MCPError, match="elicitation"):
            await mcp.call_tool("a__test_elicitation", {"message": "?"})


async def publish(plant: Plant, files: dict[str, bytes]) -> PackRow:
    async def pieces() -> AsyncIterator[bytes]:
        yield archive(files)

    header = pb.SkillPackHeader(request_id=request_id())
    return (await skills.Publisher(plant.parts).publish(header, pieces(), ACTOR))[0]


async def mount(plant: Plant, agent: str, row: PackRow) -> None:
    wanted = pb.MountSkillPackRequest(request_id=request_id(), agent=agent, skill=str(row.pack.ref))
    await plant.reconciler.mounts.mount(wanted, ACTOR)


async def listed_skills(caller: Caller, path: str) -> dict[str, Any]:
    found = (await caller.modern(path, "skills/list")).json()["result"]["skills"]
    return {entry["uri"]: entry for entry in found}


async def test_skills_are_gathered_by_what_they_are(plant: Plant, face: Face, crew: model.CrewRow, url: str):
    """Each pack once, whoever has it; other versions are others; files fit the digests that were listed."""
    admin, path = face.operator(), f"/crews/{crew.id}/mcp"
    ids = {agent.name: agent.id for agent in crew.agents}
    one, two = ids["a"], ids["b"]
    first = await publish(plant, with_tools(tool()) | {"assets/raw.bin": bytes(range(256))})
    second = await publish(plant, with_tools(tool("other_name")))
    meta = {META_VERSION: STATELESS, META_CLIENT_CAPABILITIES: {}}
    params = {"notifications": {"resourcesListChanged": True}, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": params}
    headers = {"mcp_protocol_version": STATELESS, "mcp_method": "subscriptions/listen"}
    async with admin.post(path, body, **headers) as stream:
        assert b"acknowledged" in await stream.content.readuntil(b"\n\n")
        await mount(plant, one, first)
        assert b"notifications/resources/list_changed" in await stream.content.readuntil(b"\n\n")
    [(uri, entry)] = (await listed_skills(admin, path)).items()
    assert uri == f"skill://{first.pack.digest[7:39]}/counting/SKILL.md"
    assert entry["_meta"]["hyperfactory.local/agents"] == ["a"]
    await mount(plant, two, second)
    both = await until(lambda: two_of(admin, path), what="both versions")
    assert both[uri] == entry
    await unmounted(plant, two)
    await mount(plant, two, first)
    await until(lambda: bearers(admin, path, uri, ["a", "b"]), what="both agents have the one pack")
    reviewer = face.operator(["reviewer"])
    assert set(await listed_skills(reviewer, path)) == {uri}
    got = await reviewer.modern(path, "skills/get", {"uri": uri})
    assert got.json()["result"]["skill"]["resources"] == entry["resources"]
    for resource in entry["resources"]:
        read = await reviewer.modern(
            path, "resources/read", {"uri": resource["uri"]}, mcp_name=resource["uri"]
        )
        (content,) = read.json()["result"]["contents"]
        data = content["text"].encode() if "text" in content else base64.b64decode(content["blob"])
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == resource["digest"]
    gone = uri.replace(first.pack.digest[7:39], second.pack.digest[7:39])
    for method in ("skills/get", "resources/read"):
        refused = await admin.modern(path, method, {"uri": gone}, mcp_name=gone)
        assert refused.json()["error"]["code"] == INVALID_PARAMS
    await conforms(url)


async def two_of(caller: Caller, path: str) -> dict[str, Any] | None:
    found = await listed_skills(caller, path)
    return found if len(found) == 2 else None


async def bearers(caller: Caller, path: str, uri: str, names: list[str]) -> bool:
    found = await listed_skills(caller, path)
    return uri in found and found[uri]["_meta"]["hyperfactory.local/agents"] == names


async def unmounted(plant: Plant, agent: str) -> None:
    wanted = pb.UnmountSkillPackRequest(request_id=request_id(), agent=agent, name="counting")
    await plant.reconciler.mounts.unmount(wanted, ACTOR)


async def conforms(url: str) -> None:
    """The official suite finds the extension whole."""
    async with asyncio.TaskGroup() as group:
        runs = {name: group.create_task(run_suite(url, "--scenario", name)) for name in SCENARIOS}
    for name, run in runs.items():
        verdict = run.result()
        assert (verdict.failures, verdict.passed, verdict.code) == ({}, {name: SCENARIOS[name]}, 0)
