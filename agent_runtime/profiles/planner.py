"""Splits a mission over the crew's coders, has the reviewer check it, and reports."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_runtime.profile import Agent, TaskContext
from agent_runtime.roster import Mate
from wire.errors import FieldViolation, Invalid, Refused, Unavailable

NUMBERS_DEFAULT: Final = 200_000
NUMBERS_MAX: Final = 50_000_000
CODER_MAX_S: Final = 60.0
REVIEW_MAX_S: Final = 30.0
ATTEMPTS_MAX: Final = 5
RETRY_AFTER_S: Final = 0.1


class Planner(Agent):
    """Takes tasks `{"mission": text, "numbers": how far to count}`."""

    async def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:
        numbers = _numbers(task_input)
        coders = _mates(ctx, "coder")
        if not coders:
            raise Refused("cannot plan: the crew has no coder")
        # The task's id tells this run's results from those of an earlier one on the same topic.
        mission = f"{task_input.get('mission', 'count primes')}#{ctx.task}"
        await ctx.progress(0.1, f"split over {len(coders)} coders", coders=[mate.name for mate in coders])
        results = await _delegate(ctx, coders, mission, numbers)
        total = sum(result["count"] for result in results)
        await ctx.progress(0.7, f"{len(results)} results, {total} primes")
        review = await _review(ctx, mission, numbers, len(results), total)
        return {
            "mission": mission,
            "numbers": numbers,
            "primes": total,
            "approved": review.get("approved"),
            "review": review,
            "parts": results,
        }


def _mates(ctx: TaskContext, kind: str) -> list[Mate]:
    """Mates by group, else by profile."""
    others = [mate for mate in ctx.roster if mate.name != ctx.facts.name]
    by_group = [mate for mate in others if mate.group == kind]
    return by_group or [mate for mate in others if mate.profile == kind]


async def _delegate(
    ctx: TaskContext, coders: Sequence[Mate], mission: str, numbers: int
) -> list[dict[str, Any]]:
    """Each coder's result; the first failure ends the others' work."""
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(_ask(ctx, mate, mission, start, stop), name=f"ask {mate.name}")
            for mate, (start, stop) in zip(coders, _shares(numbers, len(coders)), strict=True)
            if start < stop
        ]
    return [task.result() for task in running]


async def _ask(ctx: TaskContext, mate: Mate, mission: str, start: int, stop: int) -> dict[str, Any]:
    """A coder's result. Its work can be repeated, so a coder that dies at it is succeeded, not mourned."""
    order = {"mission": mission, "start": start, "stop": stop}
    for attempt in range(1, ATTEMPTS_MAX + 1):
        task = f"{ctx.task}-{mate.name}-{attempt}"
        try:
            return await ctx.peer(mate.name).run_task(order, task=task, timeout_s=CODER_MAX_S)
        except Unavailable as error:
            if attempt == ATTEMPTS_MAX:
                raise
            await ctx.progress(0.2, f"{mate.name} went away, asking its successor", error=error.message)
            await asyncio.sleep(RETRY_AFTER_S * attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _review(ctx: TaskContext, mission: str, numbers: int, parts: int, total: int) -> dict[str, Any]:
    """The reviewer's verdict; a crew without one gets a summary that nobody approved."""
    reviewers = _mates(ctx, "reviewer")
    if not reviewers:
        return {"approved": None, "findings": ["the crew has no reviewer"]}
    order = {"mission": mission, "start": 0, "stop": numbers, "parts": parts, "claimed": total}
    mate = reviewers[0]
    return await ctx.peer(mate.name).run_task(order, task=f"{ctx.task}-{mate.name}", timeout_s=REVIEW_MAX_S)


def _shares(numbers: int, parts: int) -> list[tuple[int, int]]:
    """Adjoining ranges that cover [0, numbers)."""
    bounds = [numbers * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))


def _numbers(task_input: Mapping[str, Any]) -> int:
    numbers = task_input.get("numbers", NUMBERS_DEFAULT)
    if not isinstance(numbers, int) or not 1 <= numbers <= NUMBERS_MAX:
        violation = FieldViolation("input.numbers", f"must be a whole number from 1 to {NUMBERS_MAX}")
        raise Invalid("cannot plan the mission", violations=[violation])
    return numbers
