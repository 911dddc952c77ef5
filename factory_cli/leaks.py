"""Count what exists and nobody owns: processes, containers, mounts, files, bus users, routes. Zeros expected.

Owned is what the store says: instances of crews that are not DISBANDED or FAILED, and the warm pool's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from factory_cli.belongings import Belongings, look
from factory_cli.failures import Exit
from factory_cli.output import Output

SETTLE_WITHIN_S = 5.0
SETTLE_POLL_S = 0.1
EXAMPLES_MAX = 5


@dataclass(frozen=True, slots=True)
class Count:
    """One counter: how many of what, how it was counted, and the first few."""

    name: str
    value: int
    how: str
    examples: tuple[str, ...] = ()
    skipped: str = ""
    """Why it could not be counted; then `value` is 0 and says nothing."""


@dataclass(frozen=True, slots=True)
class Counter:
    """What is counted, and how."""

    name: str
    how: str
    find: Callable[[Belongings], Sequence[str]]
    needs: str = ""
    """The part that must answer for it: `postgres`, `valkey`, `gateway` or `docker`."""


COUNTERS: tuple[Counter, ...] = (
    Counter(
        "processes",
        "sandboxes alive, or children of the fork server, that own no instance row",
        lambda b: b.processes,
    ),
    Counter(
        "fork servers",
        "fork servers of this home beyond one, or any without a stack",
        lambda b: b.fork_servers,
    ),
    Counter(
        "containers",
        "containers of this home in the engine of DOCKER_HOST that own no instance row",
        lambda b: b.containers,
        "docker",
    ),
    Counter(
        "networks",
        "crews' networks of this home in that engine without a row, or of ended crews",
        lambda b: b.networks,
        "docker",
    ),
    Counter("mounts", "mount points below the home in /proc/self/mountinfo", lambda b: b.mounts),
    Counter(
        "sandbox files",
        "records, sockets and directories of instances and crews without an owner",
        lambda b: b.files,
    ),
    Counter(
        "agent rows", "agents of ended crews that are not STOPPED or FAILED", lambda b: b.agents, "postgres"
    ),
    Counter("instance rows", "instances of ended crews", lambda b: b.instances, "postgres"),
    Counter(
        "open work", "tasks and broadcasts of ended crews that have not ended", lambda b: b.work, "postgres"
    ),
    Counter(
        "bus users",
        "ACL users 'crew-*' that are not of a live agent's present generation",
        lambda b: b.bus_users,
        "valkey",
    ),
    Counter("bus keys", "keys 'crew*' without a live crew", lambda b: b.bus_keys, "valkey"),
    Counter("routes", "names of ended crews in the gateway's routes", lambda b: b.routes, "gateway"),
)


async def count(home: Path) -> list[Count]:
    """Count now; after a disband use `settle`: what is on its way out counts, too."""
    found = await look(home)
    counts = []
    for counter in COUNTERS:
        reason = found.absent.get(counter.needs, "")
        names = () if reason else tuple(counter.find(found))
        counts.append(Count(counter.name, len(names), counter.how, names[:EXAMPLES_MAX], reason))
    return counts


async def settle(home: Path, *, within_s: float = SETTLE_WITHIN_S) -> list[Count]:
    """Count until everything is zero or the time is over; the last counts."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        counts = await count(home)
        if not total(counts) or loop.time() >= deadline:
            return counts
        await asyncio.sleep(SETTLE_POLL_S)


def total(counts: Sequence[Count]) -> int:
    """The sum."""
    return sum(found.value for found in counts)


def show(out: Output, counts: Sequence[Count]) -> None:
    """Print the counters as rows."""
    rows = [
        (
            found.name,
            "-" if found.skipped else found.value,
            found.skipped or ", ".join(found.examples) or found.how,
        )
        for found in counts
    ]
    out.table(("LEAKED", "COUNT", ""), rows)


async def run(home: Path, out: Output, *, within_s: float = SETTLE_WITHIN_S) -> Exit:
    """Print the counters; fail if any is not zero."""
    counts = await settle(home, within_s=within_s)
    if out.as_json:
        body = {
            found.name: {
                "count": found.value,
                "how": found.how,
                "examples": found.examples,
                "skipped": found.skipped,
            }
            for found in counts
        }
        out.document({"total": total(counts), "counters": body})
    show(out, counts)
    return Exit.FAILED if total(counts) else Exit.OK
