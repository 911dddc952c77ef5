"""The commands against the whole product."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from stack_process import Shell, stack
from support.packs import END, member

HELLO = "examples/crews/hello.json"
pytestmark = [pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory) -> AsyncIterator[Shell]:
    place = tmp_path_factory.mktemp("cli")
    async with stack(place / "h", place / "bin") as shell:
        yield shell


async def document(run: Shell, line: str):
    """Run a command that must succeed; the one document it prints."""
    ended = await run(f"hyperfactory --json {line}")
    assert ended.code == 0, f"{line}\n{ended.out}{ended.err}"
    return json.loads(ended.out)


async def lines(run: Shell, line: str):
    """Run a streaming command that must succeed; the documents it prints."""
    ended = await run(f"hyperfactory --json {line}")
    assert ended.code == 0, f"{line}\n{ended.out}{ended.err}"
    return [json.loads(text) for text in ended.out.splitlines()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crew(run) -> AsyncIterator[str]:
    """One for all: a command takes most of a second, and no test spoils the crew for those after it."""
    crew_id = (await document(run, f"crew assemble {HELLO}"))["crew"]["id"]
    yield crew_id
    await document(run, f"crew disband {crew_id}")
    leaks = await document(run, "check-leaks")
    assert leaks["total"] == 0, leaks


async def test_a_crew_assembles_and_every_member_is_listed(run, crew):
    found = await document(run, f"crew get {crew}")
    assert found["state"] == "CREW_STATE_READY"
    names = sorted(agent["name"] for agent in found["agents"])
    assert names == ["coder-1", "coder-2", "planner", "reviewer"]
    listed = await document(run, f"agent list --crew {crew}")
    assert sorted(agent["name"] for agent in listed["agents"]) == names


async def test_a_signal_reaches_everybody_once(run, crew):
    stream = await lines(run, f"crew broadcast {crew} MISSION_START --payload '{{\"n\": 1}}'")
    receipts = [receipt for response in stream for receipt in response["receipts"]]
    assert sorted(receipt["name"] for receipt in receipts) == ["coder-1", "coder-2", "planner", "reviewer"]
    assert {receipt["stage"] for receipt in receipts} == {"RECEIPT_STAGE_ACKED"}
    assert stream[-1]["completed"]["targets"] == 4


async def test_a_mission_is_split_run_and_approved(run, crew):
    task = '{"mission": "count primes", "numbers": 10000}'
    stream = await lines(run, f"task run {crew} --group planner --input '{task}'")
    output = stream[-1]["result"]["output"]
    assert (output["primes"], output["approved"]) == (1229, True)
    verdict = await document(run, f"context get {crew} review")
    assert verdict["value"]["approved"] is True


async def test_a_killed_member_comes_back_with_the_next_generation(run, crew):
    before = await document(run, f"agent get {crew}/coder-1")
    os.kill(int(before["instance"]["hostPid"]), signal.SIGKILL)
    events = await lines(run, f"crew watch {crew} --type agent_state --idle 2")
    healed = [
        e["agentStep"]
        for e in events
        if e["agent"] == before["id"] and e["agentStep"]["to"].endswith("_READY")
    ]
    assert [int(step["generation"]) for step in healed] == [1, 2]
    after = await document(run, f"agent get {crew}/coder-1")
    assert (after["id"], int(after["generation"])) == (before["id"], 2)


async def test_an_agent_hibernates_and_wakes_by_hand(run, crew):
    asleep = await document(run, f"agent hibernate {crew}/planner")
    assert asleep["state"] == "AGENT_STATE_HIBERNATING"
    awake = await document(run, f"agent wake {crew}/planner")
    assert (awake["state"], awake["generation"]) == ("AGENT_STATE_READY", "2")


async def test_a_skill_pack_is_published_mounted_called_and_taken_away(run, crew, tmp_path):
    published = await document(run, "skill publish examples/skills/text-statistics")
    again = await document(run, "skill publish examples/skills/text-statistics")
    assert (published["existed"], again["existed"]) == (False, True)
    pin = f"text-statistics@{published['pack']['digest']}"
    assert [p["name"] for p in (await document(run, "skill list"))["packs"]] == ["text-statistics"]
    assert (await document(run, f"skill get {pin}"))["files"][0]["path"] == "SKILL.md"
    mounted = await document(run, f"skill mount {crew}/coder-1 text-statistics")
    assert mounted["agent"]["skills"] == [pin]
    assert [tool["name"] for tool in mounted["tools"]] == ["text_statistics"]
    public = "coder-1__text_statistics"
    called = await lines(run, f'tool call {crew} {public} \'{{"text": "One two. Three!"}}\'')
    assert called[-1]["result"]["structured"]["words"] == 3
    unmounted = await document(run, f"skill unmount {crew}/coder-1 text-statistics")
    assert unmounted["agent"]["skills"] == []
    assert (await run(f"hyperfactory tool call {crew} {public} '{{}}'")).code != 0
    hostile = tmp_path / "hostile.tar"
    hostile.write_bytes(member(b"../../etc/passwd", b"x") + END)
    refused = await run(f"hyperfactory --json skill publish {hostile}")
    assert refused.code != 0
    assert "SKILL_REFUSED" in refused.out + refused.err


async def test_a_crew_is_scaled_by_another_manifest(run, crew, tmp_path):
    """The last, as others count the members."""
    wish = json.loads(Path(HELLO).read_text())
    next(member for member in wish["members"] if member["name"] == "coder")["replicas"] = 3
    larger = tmp_path / "larger.json"
    larger.write_text(json.dumps(wish))
    ended = await run(f"hyperfactory crew update {crew} {larger} --validate-only")
    assert (ended.code, ended.out) == (0, "would be added: coder-3\nwould be removed: nobody\n")
    grown = await document(run, f"crew update {crew} {larger}")
    assert (grown["added"], len(grown["crew"]["agents"])) == (["coder-3"], 5)
