"""Checks the coders' results by other means than theirs, and writes its verdict into the crew's context."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_runtime.profile import Agent, TaskContext
from agent_runtime.profiles.coder import RESULTS
from wire.errors import FieldViolation, Invalid

VERDICT: Final = "review"
WAIT_FOR_RESULTS_S: Final = 10.0
SAMPLE_SIZE: Final = 400
# Miller-Rabin with these bases is exact below 3.3e24.
WITNESSES: Final = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)

Result = Mapping[str, Any]


class Reviewer(Agent):
    """Takes tasks `{"mission", "start", "stop", "parts", "claimed"}`; reads the results from the bus itself."""

    async def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:
        mission, parts, claimed = _order(task_input)
        results = await _collect(ctx, mission, parts)
        await ctx.progress(0.5, f"read {len(results)} results from the bus")
        findings = [
            *_gaps(results, task_input["start"], task_input["stop"]),
            *_wrong_sum(results, claimed),
            *_wrong_sample(results, mission),
        ]
        verdict = {
            "mission": mission,
            "approved": not findings,
            "findings": findings[:20],
            "total": sum(result["count"] for result in results),
            "results_read": len(results),
            "sampled": SAMPLE_SIZE * len(results),
            "reviewer": ctx.facts.name,
        }
        version = await ctx.bus.put(VERDICT, verdict)
        return {**verdict, "context_version": version}


def _order(task_input: Mapping[str, Any]) -> tuple[str, int, int]:
    mission, parts, claimed = (task_input.get(name) for name in ("mission", "parts", "claimed"))
    span = (task_input.get("start"), task_input.get("stop"))
    if not (isinstance(mission, str) and all(isinstance(item, int) for item in (parts, claimed, *span))):
        violation = FieldViolation("input", "needs mission, parts, claimed, start and stop")
        raise Invalid("cannot review without knowing what was claimed", violations=[violation])
    return mission, int(str(parts)), int(str(claimed))


async def _collect(ctx: TaskContext, mission: str, parts: int) -> list[Result]:
    """The mission's results on the bus, waiting for as many as there must be, up to a limit."""
    found: dict[tuple[int, int], Result] = {}  # by range: a coder's successor may publish its share again
    try:
        async with asyncio.timeout(WAIT_FOR_RESULTS_S):
            async for message in ctx.bus.subscribe(RESULTS, after="0"):
                if isinstance(message.data, dict) and message.data.get("mission") == mission:
                    found[message.data["start"], message.data["stop"]] = message.data
                if len(found) == parts:
                    break
    except TimeoutError:
        ctx.log.warning("results are missing", extra={"found": len(found), "expected": parts})
    return sorted(found.values(), key=lambda result: int(result["start"]))


def _gaps(results: Sequence[Result], start: int, stop: int) -> list[str]:
    """Where the results do not cover the mission's range, or cover it twice."""
    at, found = start, []
    for result in results:
        if result["start"] != at:
            found.append(f"{result['coder']} starts at {result['start']}, not at {at}")
        at = result["stop"]
    return found if at == stop else [*found, f"the results end at {at}, not at {stop}"]


def _wrong_sum(results: Sequence[Result], claimed: int) -> list[str]:
    total = sum(result["count"] for result in results)
    return [] if total == claimed else [f"the results add up to {total}, not to {claimed}"]


def _wrong_sample(results: Sequence[Result], mission: str) -> list[str]:
    """Test some numbers of each result's range: the last prime it names, and the density it implies."""
    found = []
    for result in results:
        last, stop = result.get("last"), result["stop"]
        if last is not None and not is_prime(last):
            found.append(f"{result['coder']} says that {last} is prime")
        if any(is_prime(number) for number in range((last or result["start"]) + 1, stop)):
            found.append(f"{result['coder']} missed a prime after {last}")
        if not _plausible(result, mission):
            found.append(f"{result['coder']} counts {result['count']} primes, which a sample contradicts")
    return found


def _plausible(result: Result, mission: str) -> bool:
    """Count exactly where the range is small, else compare with a seeded sample, six deviations wide."""
    start, stop, count = result["start"], result["stop"], result["count"]
    span = stop - start
    if span <= SAMPLE_SIZE:
        return bool(count == sum(is_prime(number) for number in range(start, stop)))
    dice = random.Random(f"{mission}:{start}:{stop}")
    share = sum(is_prime(dice.randrange(start, stop)) for _ in range(SAMPLE_SIZE)) / SAMPLE_SIZE
    deviation: float = (max(share * (1 - share), 1 / SAMPLE_SIZE) / SAMPLE_SIZE) ** 0.5
    return bool(abs(share - count / span) <= 6 * deviation)


def is_prime(number: int) -> bool:
    """Miller-Rabin: nothing in common with the coders' sieve."""
    if number < 2:
        return False
    for prime in WITNESSES:
        if number % prime == 0:
            return number == prime
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(number, witness, odd, twos) for witness in WITNESSES)


def _passes(number: int, witness: int, odd: int, twos: int) -> bool:
    power = pow(witness, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False
