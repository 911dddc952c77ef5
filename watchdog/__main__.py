"""`python -m watchdog`: probe every agent of a factory and report until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from watchdog.core import INTERVAL_DEFAULT_S, INTERVAL_MIN_S, Watchdog
from watchdog.share import shard
from wire.identity import IdentityFile
from wire.logs import configure
from wire.metrics import serve_metrics


def read_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    return parser().parse_args(words)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="watchdog", description=__doc__)
    parser.add_argument("--factory", required=True, help="the factory's gRPC target, as 127.0.0.1:7443")
    parser.add_argument(
        "--identity", required=True, type=Path, help="directory with cert.pem, key.pem, ca.pem"
    )
    parser.add_argument("--metrics", default="", help="host:port for /metrics and /readyz; empty: none")
    parser.add_argument(
        "--interval", type=_interval, default=INTERVAL_DEFAULT_S, help="seconds, where a profile names none"
    )
    parser.add_argument("--shard", type=shard, default="0/1", help="i/n: the i-th (from 0) of n watchdogs")
    return parser


def _interval(text: str) -> float:
    seconds = float(text)
    if not INTERVAL_MIN_S <= seconds <= 600:
        raise ValueError(f"cannot probe every {text} s: it must be {INTERVAL_MIN_S} to 600")
    return seconds


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    watchdog = Watchdog(
        arguments.factory,
        IdentityFile(arguments.identity).current,
        interval_s=arguments.interval,
        owns=arguments.shard,
    )
    told_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_stop.set)
    async with AsyncExitStack() as stack:
        if arguments.metrics:
            await stack.enter_async_context(await serve_metrics(arguments.metrics, lambda: watchdog.synced))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        running = group.create_task(watchdog.run(), name="watchdog")
        await told_to_stop.wait()
        running.cancel()


def main() -> None:
    configure("watchdog")
    uvloop.run(serve(read_arguments()))


if __name__ == "__main__":
    main()
