"""Skill packs in a running agent: tools within their scopes, files by MCP, and what the official suite says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.packs import archive, tool, with_tools

from factory_server.core.skill_archive import read_entries
from factory_server.core.skills import Pack, make_pack
from factory_server.services.skills import mounted_message
from hyperfactory.v1 import agent_service_pb2 as pb
from tests.integration.agent_runtime.parts import Instance, World, call_tool, reason_of, until
from tests.support.conformance import run_suite
from tests.support.forwarder import forwarded, to_socket
from tests.support.mcp import CODER, REVIEWER, Mcp, McpFailure

EXTENSION = "io.modelcontextprotocol/skills"
ADMIN = {**CODER, "x-hyperfactory-scopes": "admin"}
SCRIPTS = {
    "plain": b"echo hello; cat > /dev/null\n",
    "fails": b"echo 'the file is missing' >&2; exit 3\n",
    "sleeps": b"sleep 30\n",
    "lists": b'echo \'{"cwd": "\'"$PWD"\'", "home": "\'"$HOME"\'"}\'\n',
}


def lay(instance: Instance, files: dict[str, bytes]) -> pb.MountedSkill:
    """As the factory does: the files lie there, and the message tells of them."""
    pack: Pack = make_pack(read_entries(archive(files)))[0]
    for path, data in files.items():
        place = instance.runtime.paths.skills / pack.name / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return mounted_message(pack)


async def mount(instance: Instance, files: dict[str, bytes]) -> Any:
    told = lay(instance, files)
    request = pb.MountSkillRequest(skill=f"{told.name}@{told.digest}", mounted=told)
    return await instance.stub.MountSkill(request, timeout=10)


async def unmount(instance: Instance, name: str = "counting") -> None:
    await instance.stub.UnmountSkill(pb.UnmountSkillRequest(skill=name), timeout=20)


async def names(socket: Path, headers: dict[str, str]) -> set[str]:
    return {found["name"] for found in (await Mcp(socket, headers).ask("tools/list"))["tools"]}


def shell_pack(**more: Any) -> dict[str, bytes]:
    declared = [tool(name, script=f"scripts/{name}.sh", input_schema={"type": "object"}) for name in SCRIPTS]
    return with_tools(*declared, **more) | {f"scripts/{name}.sh": text for name, text in SCRIPTS.items()}


async def test_a_pack_comes_and_goes_while_the_agent_runs(world: World) -> None:
    agent = await world.agent()
    before = agent.runtime.agent().offered.revision
    answer = await mount(agent, with_tools(tool()))
    assert [found.name for found in answer.tools] == ["count_words"]
    assert agent.runtime.agent().offered.revision > before
    assert await mount(agent, with_tools(tool())) == answer
    found = await call_tool(agent.stub, "count_words", {"text": "a b"})
    assert (found.structured["words"], found.is_error) == (2, False)
    await unmount(agent)
    await unmount(agent)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_tool(agent.stub, "count_words", {"text": "a b"})
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_packs_of_the_assumption_are_there_from_the_first_call(world: World) -> None:
    instance = await world.instance()
    told = lay(instance, with_tools(tool()))
    world.enlist("solo")
    done = await instance.stub.Assume(await world.request("solo", skills=[told]), timeout=10)
    assert "count_words" in {found.name for found in done.description.tools}
    link = instance.runtime.paths.workspace / ".agents/skills"
    assert (link / "counting/SKILL.md").is_file()


async def test_scripts_say_what_they_say(world: World) -> None:
    agent = await world.agent()
    await mount(agent, shell_pack())
    plain = await call_tool(agent.stub, "plain", {})
    assert (plain.text, plain.is_error, dict(plain.structured)) == ("hello", False, {})
    fails = await call_tool(agent.stub, "fails", {})
    assert (fails.text, fails.is_error, fails.structured["exit_code"]) == ("the file is missing", True, 3)
    workspace = str(agent.runtime.paths.workspace)
    lists = await call_tool(agent.stub, "lists", {})
    assert dict(lists.structured) == {"cwd": workspace, "home": workspace}
    request = pb.CallToolRequest(name="sleeps")
    request.timeout.FromMilliseconds(300)
    updates = [update async for update in agent.stub.CallTool(request, timeout=10)]
    assert updates[-1].result.is_error


async def test_a_replaced_pack_leaves_nothing_of_the_first(world: World) -> None:
    agent = await world.agent()
    await mount(agent, with_tools(tool("first")))
    await mount(agent, with_tools(tool("second")))
    offered = {found.name for found in (await agent.stub.ListTools(pb.ListToolsRequest(), timeout=5)).tools}
    assert "second" in offered
    assert "first" not in offered


async def test_a_name_that_is_taken_is_refused_whole(world: World) -> None:
    agent = await world.agent()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mount(agent, with_tools(tool("fine"), tool("read_file")))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    offered = {found.name for found in (await agent.stub.ListTools(pb.ListToolsRequest(), timeout=5)).tools}
    assert "fine" not in offered
    wrong = pb.MountSkillRequest(skill="other@sha256:0", mounted=lay(agent, with_tools(tool())))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await agent.stub.MountSkill(wrong, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("own", "headers", "seen"),
    [
        ("reviewer", REVIEWER, {"looks"}),
        ("reviewer", ADMIN, {"looks"}),
        ("coder", REVIEWER, {"looks"}),
        ("coder", CODER, {"looks", "needs_coder", "writes"}),
        ("coder", ADMIN, {"looks", "needs_coder", "writes"}),
        ("admin", CODER, {"looks", "needs_coder", "writes"}),
        ("admin", ADMIN, {"looks", "needs_coder", "writes", "rules"}),
    ],
)
async def test_scopes_hold_for_lists_and_calls(
    world: World, own: str, headers: dict[str, str], seen: set[str]
) -> None:
    """Both must reach: who calls, and the agent itself."""
    agent = await world.agent(spec={"scope": own})
    declared = (
        tool("looks"),
        tool("needs_coder", scope="coder"),
        tool("writes", read_only=False),
        tool("rules", scope="admin"),
    )
    await mount(agent, with_tools(*declared))
    ours = {"looks", "needs_coder", "writes", "rules"}
    socket = agent.runtime.paths.http
    assert await names(socket, headers) & ours == seen
    for name in ours:
        try:
            await Mcp(socket, headers).call(name, text="a")
        except McpFailure:
            assert name not in seen
        else:
            assert name in seen


async def test_only_the_factory_mounts(world: World) -> None:
    agent = await world.agent()
    told = lay(agent, with_tools(tool()))
    stub = await world.dial("solo", world.operator_identity("admin"))
    request = pb.MountSkillRequest(skill=f"{told.name}@{told.digest}", mounted=told)
    for call in (stub.MountSkill(request), stub.UnmountSkill(pb.UnmountSkillRequest(skill="counting"))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert reason_of(caught.value) == "POLICY_DENIED"


async def test_files_are_read_as_their_digests_say(world: World) -> None:
    agent = await world.agent()
    files = with_tools(tool()) | {"assets/picture.bin": bytes(range(256)), "references/empty.md": b""}
    await mount(agent, files)
    mcp = Mcp(agent.runtime.paths.http)
    (entry,) = (await mcp.ask("skills/list"))["skills"]
    assert (await mcp.ask("skills/get", uri=entry["uri"]))["skill"] == entry
    assert len(entry["resources"]) == len(files)
    for resource in entry["resources"]:
        (content,) = (await mcp.ask("resources/read", uri=resource["uri"]))["contents"]
        data = content["text"].encode() if "text" in content else base64.b64decode(content["blob"])
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == resource["digest"]
        assert len(data) == resource["size"]
    await unmount(agent)
    assert EXTENSION not in (await mcp.ask("server/discover"))["capabilities"].get("extensions", {})


async def test_unmounting_waits_for_calls_and_cuts_off_what_never_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_runtime.skills.SKILL_CALLS_END_S", 0.3)
    agent = await world.agent()
    await mount(agent, shell_pack())
    calling = asyncio.ensure_future(call_tool(agent.stub, "sleeps", {}))  # noqa: TID251  # awaited below
    await until(lambda: len(agent.runtime.agent().tool_calls) == 1)
    async with asyncio.timeout(5):
        await unmount(agent)
        with pytest.raises(grpc.aio.AioRpcError):
            await calling


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("scenario", "passes"), [("sep-2640-skills-enumeration", 32), ("sep-2640-skills-manifest", 6)]
)
async def test_the_official_suite_finds_the_extension_whole(world: World, scenario: str, passes: int) -> None:
    agent = await world.agent()
    for example in sorted((Path(__file__).parents[3] / "examples/skills").iterdir()):
        files = {str(p.relative_to(example)): p.read_bytes() for p in example.rglob("*") if p.is_file()}
        await mount(agent, files)
    async with forwarded(to_socket(agent.runtime.paths.http), CODER) as url:
        verdict = await run_suite(f"{url}/mcp", "--scenario", scenario)
    assert verdict.failures == {}
    assert verdict.passed == {scenario: passes}
    assert verdict.code == 0
