"""Measure the figures on this machine: `python -m bench [--only NAME …] [--driver docker] [--quick]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich.console import Console

from bench import page, report
from bench.bench import Bench, open_bench
from bench.catalogue import FIGURES
from bench.line import Result
from bench.stack import running_stack
from bench.targets import BY_DRIVER
from factory_cli import leaks

RESULTS = Path(__file__).parent / "results"
ROUNDS, QUICK_ROUNDS = 30, 6
SETTLE_WITHIN_S = 15.0


def main() -> None:
    """The program; ends with 1 where something leaked."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), help="measure these figures only")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, to see that it works")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"samples of a cheap figure ({ROUNDS})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and the page go")
    parser.add_argument(
        "--driver", default="namespaces", choices=list(BY_DRIVER), help="what makes sandboxes"
    )
    args = parser.parse_args()
    rounds = QUICK_ROUNDS if args.quick else args.rounds
    chosen = [name for name in FIGURES if not args.only or name in args.only]
    raise SystemExit(uvloop.run(_run(chosen, rounds, args.results, args.driver)))


async def _run(chosen: Sequence[str], rounds: int, folder: Path, driver: str) -> int:
    _end_on_sigterm()
    console = Console()
    if console.width < report.MIN_WIDTH and not console.is_terminal:
        console = Console(width=report.MIN_WIDTH)
    async with running_stack(driver) as stack:
        async with open_bench(stack, rounds) as bench:
            results = [await _one(console, bench, name, folder) for name in chosen]
            await bench.set_pool(0)
        found = await leaks.settle(stack.home, within_s=SETTLE_WITHIN_S)
    report.table(console, results)
    report.closing(console, bench.gate, found, os.getloadavg())
    console.print(f"page: {page.write(folder)}")
    return 1 if leaks.total(found) else 0


def _end_on_sigterm() -> None:
    """Stop the stack, too, when somebody ends the bench."""
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)


async def _one(console: Console, bench: Bench, name: str, folder: Path) -> Result:
    load, since = os.getloadavg(), time.perf_counter()
    result = await FIGURES[name](bench)
    if bench.stack.driver != "namespaces":
        result.figure += f"-{bench.stack.driver}"
    result.load, result.took_s = load, time.perf_counter() - since
    report.write(folder, result)
    for line in result.lines:
        shown = report.number(line.samples.at(50))
        console.print(f"  {line.name}: {shown} {line.samples.unit} ({report.verdict(line)})", highlight=False)
        for why in line.samples.failures[:1]:
            console.print(f"    {len(line.samples.failures)} failed, first: {why}", highlight=False)
    return result


if __name__ == "__main__":
    main()
