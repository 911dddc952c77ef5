"""Writes a real program for its share of the mission, runs it, and publishes what it found."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from string import Template
from typing import Any, Final

from agent_runtime.profile import Agent, TaskContext
from agent_runtime.tools import beneath
from wire.errors import FieldViolation, Invalid, Refused

RESULTS: Final = "results"
RUN_MAX_S: Final = 30.0
SPAN_MAX: Final = 5_000_000

PROGRAM: Final = Template('''\
"""Count the primes in [$start, $stop) with a segmented sieve, and print the answer as JSON."""

import json
from math import isqrt

START, STOP = $start, $stop


def small_primes(limit):
    sieve = bytearray([1]) * (limit + 1)
    sieve[:2] = bytes(min(2, limit + 1))
    for n in range(2, isqrt(limit) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit + 1, n)))
    return [n for n in range(2, limit + 1) if sieve[n]]


def primes(start, stop):
    segment = bytearray([1]) * (stop - start)
    for n in range(start, min(2, stop)):
        segment[n - start] = 0
    for prime in small_primes(isqrt(stop)):
        first = max(prime * prime, -(-start // prime) * prime)
        segment[first - start :: prime] = bytes(len(range(first, stop, prime)))
    return [start + offset for offset, is_prime in enumerate(segment) if is_prime]


found = primes(START, STOP)
print(json.dumps({"count": len(found), "sum": sum(found), "last": found[-1] if found else None}))
''')


class Coder(Agent):
    """Takes tasks `{"mission", "start", "stop"}`."""

    async def run_task(self, ctx: TaskContext, task_input: Mapping[str, Any]) -> Mapping[str, Any]:
        start, stop = _span(task_input)
        path = f"missions/count_primes_{start}_{stop}.py"
        source = PROGRAM.substitute(start=start, stop=stop)
        await ctx.in_thread(beneath.write, ctx.workspace, path, source.encode())
        await ctx.progress(0.3, f"wrote {path}", path=path)
        answer = await _run(ctx, path)
        result = {
            "mission": str(task_input.get("mission", "")),
            "coder": ctx.facts.name,
            "start": start,
            "stop": stop,
            "program_sha256": hashlib.sha256(source.encode()).hexdigest(),
            **answer,
        }
        await ctx.progress(0.8, f"found {answer['count']} primes", count=answer["count"])
        entry = await ctx.bus.publish(RESULTS, result)
        return {**result, "entry": entry}


async def _run(ctx: TaskContext, path: str) -> dict[str, Any]:
    completed = await ctx.run([sys.executable, "-I", str(ctx.workspace / path)], timeout_s=RUN_MAX_S)
    if completed.code != 0:
        raise Refused(f"the program ended with {completed.code}: {completed.stderr[-500:]}")
    answer: dict[str, Any] = json.loads(completed.stdout)
    return answer


def _span(task_input: Mapping[str, Any]) -> tuple[int, int]:
    start, stop = task_input.get("start"), task_input.get("stop")
    if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= start + SPAN_MAX):
        violation = FieldViolation("input", f"needs 0 <= start < stop, at most {SPAN_MAX} apart")
        raise Invalid("cannot count primes without a range", violations=[violation])
    return start, stop
