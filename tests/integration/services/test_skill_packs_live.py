"""Skill packs through a whole factory: real agents use them, through deaths, crashes, sleep and tampering."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from support.asking import ACTOR, assembled, disbanded, manifest, request_id
from support.packs import COUNT, archive, tool, with_tools
from support.site import RUNTIMES, Plant, Site, until

from agent_runtime.skills import Skills
from factory_server.api.encode import Encoder
from factory_server.api.skills import SkillServicer
from factory_server.core import model
from factory_server.core.cursor import CursorCodec
from factory_server.core.errors import DigestMismatch, FactoryError, Invalid, NotFound, Refused, SkillRefused
from factory_server.core.lifecycle import AgentState, CrewState
from factory_server.core.skills import PackRow
from factory_server.services import assemble, hibernate, profiles, skills, wake
from factory_server.store import PostgresStore
from hyperfactory.v1 import agent_service_pb2 as agent_pb
from hyperfactory.v1 import crew_service_pb2, factory_service_pb2, profile_service_pb2
from hyperfactory.v1 import skill_service_pb2 as pb
from wire.policy import Caller, Principal, set_caller

SLOW = b"""import json, pathlib, sys, time
wish = json.load(sys.stdin)
pathlib.Path(wish["text"]).write_text("begun")
while not pathlib.Path(wish["text"] + ".go").exists():
    time.sleep(0.01)
print("done")
"""


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 4096):
        yield data[at : at + 4096]


async def publish(plant: Plant, files: dict[str, bytes], **header: Any) -> tuple[PackRow, bool]:
    wanted = pb.SkillPackHeader(**{"request_id": request_id(), **header})
    data = archive(files, compressed=True)
    return await skills.Publisher(plant.parts).publish(wanted, pieces(data), ACTOR)


async def mount(plant: Plant, agent: str, row: PackRow, **more: Any) -> tuple[model.AgentRow, list[str]]:
    wanted = pb.MountSkillPackRequest(
        **{"request_id": request_id(), "agent": agent, "skill": str(row.pack.ref), **more}
    )
    agent_row, tools = await plant.reconciler.mounts.mount(wanted, ACTOR)
    return agent_row, [found.name for found in tools]


async def unmount(plant: Plant, agent: str, name: str = "counting") -> model.AgentRow:
    wanted = pb.UnmountSkillPackRequest(request_id=request_id(), agent=agent, name=name)
    return await plant.reconciler.mounts.unmount(wanted, ACTOR)


async def call(plant: Plant, agent: model.AgentRow, name: str, **arguments: Any) -> agent_pb.ToolResult:
    """Over a line of its own, as the factory calls tools."""
    assert agent.instance is not None
    request = agent_pb.CallToolRequest(name=name)
    request.arguments.update(arguments)
    line = plant.parts.open_line(agent.instance.control)
    try:
        async with contextlib.aclosing(line.call_tool(request, deadline_s=10)) as updates:
            async for update in updates:
                if update.HasField("result"):
                    return update.result
    finally:
        await line.close()
    raise AssertionError("no result")


async def ready(plant: Plant, agent: str, generation: int) -> model.AgentRow:
    async def now() -> model.AgentRow | None:
        row = await plant.store.get_agent(agent)
        return row if row.state is AgentState.READY and row.generation >= generation else None

    found: model.AgentRow = await until(now, what=f"{agent} READY at {generation}")
    return found


def packs_of(site: Site, agent: model.AgentRow) -> Skills:
    """What the agent's runtime itself knows."""
    assert agent.instance is not None
    runtime = RUNTIMES[site.host.instances[agent.instance.id]]
    return runtime.agent().parts.skills


async def one_agent(plant: Plant, **fields: Any) -> model.AgentRow:
    return (await assembled(plant, **fields)).agents[0]


async def test_a_pack_is_mounted_into_a_running_agent_used_and_taken_away(site: Site, plant: Plant) -> None:
    agent = await one_agent(plant)
    row, existed = await publish(plant, with_tools(tool()))
    assert not existed
    agent, tools = await mount(plant, agent.id, row)
    assert (list(agent.spec.skills), tools) == ([str(row.pack.ref)], ["count_words"])
    result = await call(plant, agent, "count_words", text="three small words")
    assert (json.loads(result.text), dict(result.structured)) == ({"words": 3}, {"words": 3})
    assert (await call(plant, agent, "count_words", text=3)).is_error
    (entry,) = packs_of(site, agent).entries()
    assert entry["uri"] == "skill://counting/SKILL.md"
    assert {r["uri"]: r["digest"] for r in entry["resources"]} == {
        f"skill://counting/{f.path}": f"sha256:{f.sha256}" for f in row.pack.files
    }
    agent = await unmount(plant, agent.id)
    assert not agent.spec.skills
    assert agent.instance is not None
    assert list(await plant.driver.mounts(agent.instance.id)) == []
    with pytest.raises(NotFound):
        await call(plant, agent, "count_words", text="x")
    assert packs_of(site, agent).entries() == []


async def test_a_crew_with_pinned_packs_has_them_from_the_start_and_after_a_death(
    site: Site, plant: Plant
) -> None:
    row, _ = await publish(plant, with_tools(tool()))
    members = [{"name": "w", "profile": "generic", "skills": [str(row.pack.ref)]}]
    agent = await one_agent(plant, members=members)
    assert (await call(plant, agent, "count_words", text="a b")).structured["words"] == 2
    assert agent.instance is not None
    site.host.kill(agent.instance.id)
    successor = await ready(plant, agent.id, 2)
    assert (await call(plant, successor, "count_words", text="a b c")).structured["words"] == 3


async def test_what_was_mounted_at_run_time_outlives_death_and_sleep(site: Site, plant: Plant) -> None:
    agent = await one_agent(plant)
    row, _ = await publish(plant, with_tools(tool()))
    agent, _ = await mount(plant, agent.id, row)
    assert agent.instance is not None
    site.host.kill(agent.instance.id)
    agent = await ready(plant, agent.id, 2)
    assert (await call(plant, agent, "count_words", text="a")).structured["words"] == 1
    await hibernate.hibernate(
        plant.parts,
        plant.reconciler,
        factory_service_pb2.HibernateAgentRequest(request_id=request_id(), agent=agent.id),
        ACTOR,
    )
    assert list((await plant.store.get_agent(agent.id)).spec.skills) == [str(row.pack.ref)]
    wanted = factory_service_pb2.WakeAgentRequest(request_id=request_id(), agent=agent.id)
    woken = await wake.wake(plant.parts, plant.reconciler, wanted, ACTOR)
    assert (await call(plant, woken, "count_words", text="a")).structured["words"] == 1


@pytest.mark.parametrize("verb", ["mount", "unmount"])
async def test_a_factory_that_dies_between_row_and_effect_is_followed_by_one_that_finishes(
    site: Site, plant: Plant, postgres_url: str, verb: str
) -> None:
    agent = await one_agent(plant)
    row, _ = await publish(plant, with_tools(tool()))
    if verb == "unmount":
        await mount(plant, agent.id, row)
    await plant.crash()
    store = PostgresStore(postgres_url)
    await store.open()
    if verb == "mount":  # only the rows, as at a kill right after the commit
        await store.mount_skill(agent.id, row.pack.ref, None, ACTOR)
    else:
        await store.unmount_skill(agent.id, "counting", None, ACTOR)
    await store.close()
    after = await site.plant()
    wanted = ["counting"] if verb == "mount" else []

    async def settled() -> bool:
        found = await after.store.get_agent(agent.id)
        assert found.instance is not None
        shown = list(await after.driver.mounts(found.instance.id))
        known = [entry["frontmatter"]["name"] for entry in packs_of(site, found).entries()]
        return shown == known == wanted

    await until(settled, what=f"{verb} is finished by the successor")


async def test_calls_on_the_way_end_before_the_pack_goes(site: Site, plant: Plant, tmp_path: Path) -> None:
    agent = await one_agent(plant)
    row, _ = await publish(plant, with_tools(tool(read_only=False)) | {"scripts/count.py": SLOW})
    agent, _ = await mount(plant, agent.id, row)
    flag = tmp_path / "begun"
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(call(plant, agent, "count_words", text=str(flag)))
        await until(flag.exists, what="the script runs")
        going = group.create_task(unmount(plant, agent.id))
        (tmp_path / "other.go").touch()

        async def refused() -> bool:
            try:
                await call(plant, agent, "count_words", text=str(tmp_path / "other"))
            except NotFound:
                return True
            return False

        await until(refused, what="no new call is taken")
        assert not going.done() and not calling.done()
        Path(f"{flag}.go").touch()
    assert calling.result().text == "done"
    assert not going.result().spec.skills


async def test_an_unknown_pack_is_refused_by_field_before_anything_is_made(plant: Plant) -> None:
    row, _ = await publish(plant, with_tools(tool()))
    unknown = "counting@sha256:" + "0" * 64
    crew = manifest(
        members=[{"name": "w", "profile": "generic", "skills": [str(row.pack.ref).replace("c", "k", 1)]}]
    )
    profile = {"name": "p", "spec": {"skills": [unknown]}}
    before = await plant.store.list_instances()
    with pytest.raises(Invalid) as caught:
        await assemble.assemble(
            plant.parts,
            plant.reconciler,
            crew_service_pb2.AssembleCrewRequest(request_id=request_id(), manifest=crew),
            ACTOR,
        )
    assert [v.field for v in caught.value.violations] == ["manifest.members[0].skills[0]"]
    with pytest.raises(Invalid) as caught:
        request = profile_service_pb2.CreateProfileRequest(request_id=request_id())
        request.profile.name = "p"
        request.profile.spec.skills.extend(profile["spec"]["skills"])
        await profiles.create(plant.parts, request, ACTOR)
    assert [v.field for v in caught.value.violations] == ["profile.spec.skills[0]"]
    assert await plant.store.list_instances() == before
    with pytest.raises(NotFound):
        await plant.store.get_profile("p")


FORGED_TOOLS = """
UPDATE skill_pack SET frontmatter = jsonb_set(
    frontmatter, '{metadata,hyperfactory/tools}',
    to_jsonb(replace(frontmatter #>> '{metadata,hyperfactory/tools}', 'Count', 'Forge')))
"""


async def test_tools_that_were_changed_in_the_store_are_never_offered(
    plant: Plant, postgres_url: str
) -> None:
    """Also where the pack's files lie on the host already: no digest covers what the row says beside them."""
    agent = await one_agent(plant)
    row, _ = await publish(plant, with_tools(tool()))
    await mount(plant, agent.id, row)
    await unmount(plant, agent.id)
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(FORGED_TOOLS)
    with pytest.raises(DigestMismatch, match=r"otherwise than its SKILL\.md"):
        await mount(plant, agent.id, row)
    assert not (await plant.store.get_agent(agent.id)).spec.skills


async def test_content_that_was_changed_in_the_store_is_never_mounted(
    plant: Plant, postgres_url: str
) -> None:
    agent = await one_agent(plant)
    row, _ = await publish(plant, with_tools(tool()))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("UPDATE skill_pack SET content = overlay(content placing 'X' from 200)")
    with pytest.raises(DigestMismatch) as caught:
        await mount(plant, agent.id, row)
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert not (await plant.store.get_agent(agent.id)).spec.skills


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE skill_pack SET signature = 'forged'",
        "UPDATE skill_pack SET key_id = 'other'",
        "UPDATE skill_pack SET files = jsonb_set(files, '{0,3}', to_jsonb(repeat('0', 64)))",
        "UPDATE skill_pack SET frontmatter = jsonb_set(frontmatter, '{description}', '\"Another.\"')",
        "UPDATE skill_pack SET content = overlay(content placing 'X' from 10)",
        """UPDATE skill_pack SET frontmatter = '{"metadata": {"hyperfactory/tools": "no JSON"}}'""",
    ],
)
async def test_what_we_did_not_sign_is_not_even_shown(plant: Plant, postgres_url: str, change: str) -> None:
    row, _ = await publish(plant, with_tools(tool()))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(change.encode())
    with pytest.raises(DigestMismatch):
        await skills.find(plant.parts, str(row.pack.ref))
    assert [r.pack.digest for r in await plant.store.list_skills(model.Page(10))] == [row.pack.digest]
    assert (await publish(plant, with_tools(tool())))[1], "it was there"
    assert (await skills.find(plant.parts, str(row.pack.ref))).pack == row.pack, (
        "published again, it is trusted"
    )


HEADER = pb.PublishSkillPackRequest(header=pb.SkillPackHeader(request_id=request_id()))
CHUNK = pb.PublishSkillPackRequest(chunk=archive(with_tools(tool())))
MISPLACED = {
    "nothing at all": [],
    "no header": [CHUNK],
    "the header last": [CHUNK, HEADER],
    "two headers": [HEADER, CHUNK, HEADER],
    "a piece of nothing": [HEADER, pb.PublishSkillPackRequest(), CHUNK],
    "a header alone": [HEADER],
    "half of it": [HEADER, pb.PublishSkillPackRequest(chunk=CHUNK.chunk[:1536])],
}


async def test_a_stream_that_is_no_publication_leaves_nothing(plant: Plant) -> None:
    """Wrong order, too little, too much, broken off: each is refused, and the place it took is free again."""
    set_caller(Caller(Principal.OPERATOR, f"spiffe://hyperfactory.local/{ACTOR}"))
    codec = CursorCodec(b"k" * 32)
    servicer = SkillServicer(plant.parts, plant.reconciler.mounts, Encoder(""), codec)

    async def come(*requests: pb.PublishSkillPackRequest) -> AsyncIterator[pb.PublishSkillPackRequest]:
        for request in requests:
            yield request

    async def broken() -> AsyncIterator[pb.PublishSkillPackRequest]:
        yield HEADER
        yield pb.PublishSkillPackRequest(chunk=CHUNK.chunk[:1024])
        raise asyncio.CancelledError

    for what, requests in MISPLACED.items():
        with pytest.raises(Invalid) as caught:
            await servicer.PublishSkillPack(come(*requests), None)
        assert caught.value.reason in ("FIELD_INVALID", "SKILL_REFUSED"), what
    for _ in range(skills.PUBLICATIONS_MAX + 1):
        with pytest.raises(asyncio.CancelledError):
            await servicer.PublishSkillPack(broken(), None)
    huge = pb.PublishSkillPackRequest(chunk=bytes(1 << 20))
    with pytest.raises(Invalid) as caught:
        await servicer.PublishSkillPack(come(HEADER, *[huge] * 20), None)
    assert isinstance(caught.value, SkillRefused)
    assert caught.value.metadata["rule"] == "archive-size"
    assert list(await plant.store.list_skills(model.Page(10))) == []


@pytest.mark.parametrize("tamper", ["content", "mode", "extra", "link"])
async def test_a_directory_that_was_changed_on_the_host_is_refused(
    site: Site, plant: Plant, tamper: str
) -> None:
    row, _ = await publish(plant, with_tools(tool()))
    agent = await one_agent(plant)
    await mount(plant, agent.id, row)
    await unmount(plant, agent.id)
    place = site.home / "skills" / row.pack.digest.removeprefix("sha256:")
    script = place / "scripts/count.py"
    if tamper == "content":
        script.chmod(0o600)
        script.write_bytes(COUNT.replace("split", "spilt").encode())
        script.chmod(0o444)
    elif tamper == "mode":
        script.chmod(0o4755)
    elif tamper == "extra":
        (place / "scripts/more.py").write_text("x")
    else:
        script.unlink()
        script.symlink_to("/etc/passwd")
    with pytest.raises(DigestMismatch):
        await mount(plant, agent.id, row)
    members = [{"name": "w", "profile": "generic", "skills": [str(row.pack.ref)]}]
    with pytest.raises(Refused) as caught:
        await one_agent(plant, name="second", members=members)
    assert caught.value.reason == "ASSEMBLY_FAILED"
    assert "was changed" in caught.value.message or "other files" in caught.value.message


async def test_requests_are_of_one_effect_and_a_wrong_digest_is_refused(plant: Plant) -> None:
    same = request_id()
    first, _ = await publish(plant, with_tools(tool()), request_id=same)
    again, existed = await publish(plant, with_tools(tool()), request_id=same)
    assert (again, existed) == (first, True)
    with pytest.raises(Invalid) as caught:
        await publish(plant, with_tools(tool("other")), request_id=same)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(DigestMismatch):
        await publish(plant, with_tools(tool("third")), digest=first.pack.digest)
    await publish(plant, with_tools(tool("fourth")), validate_only=True)
    assert [r.pack.digest for r in await plant.store.list_skills(model.Page(10))] == [first.pack.digest]


async def test_a_tool_that_another_source_has_is_refused_and_nothing_stays(site: Site, plant: Plant) -> None:
    agent = await one_agent(plant)
    row, _ = await publish(plant, with_tools(tool("read_file")))
    same = request_id()
    for _ in range(2):
        with pytest.raises(FactoryError):
            await mount(plant, agent.id, row, request_id=same)
        now = await plant.store.get_agent(agent.id)
        assert not now.spec.skills
        assert now.instance is not None
        assert list(await plant.driver.mounts(now.instance.id)) == []


async def test_a_crew_that_ends_takes_its_mounts_along(site: Site, plant: Plant) -> None:
    agent = await one_agent(plant)
    row, _ = await publish(plant, with_tools(tool()))
    await mount(plant, agent.id, row)
    assert (await disbanded(plant, agent.crew)).state is CrewState.DISBANDED
    shown = site.home / "s" / "skills"

    async def gone() -> bool:
        return not list(shown.iterdir())

    await until(gone, what="no instance's tree is left")
    assert (site.home / "skills" / row.pack.digest.removeprefix("sha256:")).is_dir()
