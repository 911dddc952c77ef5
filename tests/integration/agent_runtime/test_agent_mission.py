"""The demo mission, with real programs, a real bus and mutual TLS between the crew's agents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_runtime.profiles.reviewer import is_prime
from agent_runtime.structs import to_struct
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import events_pb2
from tests.integration.agent_runtime.parts import CREW, Instance, World, plain, run_task, until

PRIMES_BELOW_20000 = 2262
MISSION = {"mission": "count primes", "numbers": 20_000}


def entry(profile: str) -> dict[str, Any]:
    return {"entry_point": f"agent_runtime.profiles.{profile}:{profile.title()}"}


async def crew(world: World, coders: int = 2, *, reviewer: bool = True) -> Instance:
    """Planner, coders and reviewer, each knowing all; returns the planner."""
    names = [*(f"coder-{number}" for number in range(1, coders + 1)), *(["reviewer"] if reviewer else [])]
    for name in [*names, "planner"]:
        world.enlist(name, group=name.split("-")[0])
    for name in names:
        group = name.split("-")[0]
        await world.agent(name, group=group, spec=entry(group))
    return await world.agent("planner", group="planner", spec=entry("planner"))


async def test_the_crew_counts_primes_and_the_reviewer_approves(bussed: World) -> None:
    planner = await crew(bussed)
    progress, result = await run_task(planner.stub, "m1", MISSION)
    output = plain(result.output)
    assert result.status.code == 0
    assert (output["primes"], output["approved"]) == (PRIMES_BELOW_20000, True)
    assert [part["coder"] for part in output["parts"]] == ["coder-1", "coder-2"]
    assert [step.fraction for step in progress] == [0.1, 0.7]


async def test_coders_leave_programs_and_the_verdict_is_in_the_shared_context(bussed: World) -> None:
    planner = await crew(bussed)
    await run_task(planner.stub, "m1", MISSION)
    assert bussed.bus is not None
    verdict = json.loads((await bussed.bus.get_context(CREW, "review")).value or "null")
    assert verdict["approved"] and verdict["results_read"] == 2
    coders = [bussed.home / "coder-11-w", bussed.home / "coder-21-w"]
    assert [len(list((workspace / "missions").iterdir())) for workspace in coders] == [1, 1]


async def test_a_second_mission_does_not_read_the_first_ones_results(bussed: World) -> None:
    planner = await crew(bussed)
    for task in ("m1", "m2"):
        _, result = await run_task(planner.stub, task, MISSION)
        assert plain(result.output)["approved"] is True


async def test_without_a_reviewer_nobody_approves(bussed: World) -> None:
    planner = await crew(bussed, 1, reviewer=False)
    _, result = await run_task(planner.stub, "m1", MISSION)
    output = plain(result.output)
    assert (output["primes"], output.get("approved")) == (PRIMES_BELOW_20000, None)


async def test_a_coder_that_dies_at_its_work_is_succeeded(bussed: World) -> None:
    """The planner asks the dead coder's successor as soon as it is wired; the review holds."""
    dying = {"entry_point": "tests.integration.agent_runtime.agents:Worker"}
    for name in ("coder-1", "coder-2", "reviewer", "planner"):
        bussed.enlist(name, group=name.split("-")[0])
    await bussed.agent("coder-1", group="coder", spec=entry("coder"))
    doomed = await bussed.agent("coder-2", group="coder", spec=dying, config={"wait": True})
    await bussed.agent("reviewer", group="reviewer", spec=entry("reviewer"))
    planner = await bussed.agent("planner", group="planner", spec=entry("planner"))
    request = pb.AgentServiceRunTaskRequest(task="m1", input=to_struct(MISSION))
    coming = aiter(planner.stub.RunTask(request, timeout=30))
    await anext(coming)
    await until(lambda: len(doomed.runtime.agent().tasks))
    await doomed.runtime.stop()
    await bussed.agent("coder-2", group="coder", spec=entry("coder"), generation=2)
    updates = [update async for update in coming]
    output = plain(updates[-1].result.output)
    assert (output["primes"], output["approved"]) == (PRIMES_BELOW_20000, True)
    assert any("went away" in update.progress.message for update in updates)


async def test_without_coders_the_mission_is_refused(bussed: World) -> None:
    planner = await bussed.agent("planner", group="planner", spec=entry("planner"))
    _, result = await run_task(planner.stub, "m1", MISSION)
    assert result.status.code == 9
    assert "no coder" in result.status.message


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"count": 1}, "counts 1 primes"),
        ({"last": 9996}, "says that 9996 is prime"),
        ({"start": 1}, "starts at 1, not at 0"),
        ({}, "add up to 1229, not to 1230"),
    ],
)
async def test_the_reviewer_finds_what_is_wrong(bussed: World, changed: dict[str, int], finding: str) -> None:
    reviewer = await bussed.agent("reviewer", group="reviewer", spec=entry("reviewer"))
    honest = {"mission": "m", "coder": "x", "start": 0, "stop": 10_000, "count": 1229, "last": 9973}
    agent = reviewer.runtime.agent()
    await agent.parts.bus.publish("results", honest | changed)
    claimed = 1229 if changed else 1230
    order = {"mission": "m", "parts": 1, "claimed": claimed, "start": 0, "stop": 10_000}
    _, result = await run_task(reviewer.stub, "r", order)
    output = plain(result.output)
    assert output["approved"] is False
    assert any(finding in text for text in output["findings"]), output["findings"]


async def test_mission_start_is_acknowledged_by_all(bussed: World) -> None:
    await crew(bussed)
    planner = await bussed.agent("planner2", group="planner", spec=entry("planner"))
    session = planner.stub.Deliver()
    assert (await session.read()).attached
    assert (await session.read()).report.tools
    await session.write(
        pb.DeliverRequest(
            signal=pb.SignalDelivery(broadcast="b1", signal="MISSION_START", actor="operator/ada")
        )
    )
    [receipt] = (await session.read()).receipts
    assert (receipt.broadcast, receipt.stage) == ("b1", events_pb2.RECEIPT_STAGE_ACKED)
    session.cancel()


def test_the_reviewers_primality_test_agrees_with_division() -> None:
    expected = [n for n in range(2000) if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))]
    assert [n for n in range(2000) if is_prime(n)] == expected
    assert not is_prime(3215031751)  # a strong pseudoprime to 2, 3, 5 and 7
