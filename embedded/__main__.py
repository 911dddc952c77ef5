"""Serve the whole stack in the foreground: `python -m embedded --home run`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from embedded import make_parent
from embedded.paths import UnsafeDirectoryError
from embedded.programs import DRIVERS, driver_wanted
from embedded.stack import AlreadyServedError, serve
from embedded.supervisor import CannotStartError
from wire import logs


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m embedded", description=__doc__)
    default = os.environ.get("HYPERFACTORY_HOME", "run")
    parser.add_argument("--home", type=Path, default=Path(default), help="where everything is kept")
    parser.add_argument("--driver", default=driver_wanted(), choices=DRIVERS, help="what makes sandboxes")
    parser.add_argument("--leave-sandboxes", action="store_true", help="stop the programs, not the agents")
    parser.add_argument(
        "--under-make", action="store_true", help="stop when make, our parent, is interrupted"
    )
    args = parser.parse_args(argv)
    logs.configure("embedded")
    try:
        asyncio.run(_serve(args))
    except (AlreadyServedError, CannotStartError, UnsafeDirectoryError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _serve(args: argparse.Namespace) -> None:
    serving = serve(args.home, say=_say, destroy=not args.leave_sandboxes, driver=args.driver)
    if not args.under_make:
        return await serving
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_pass_on_interrupt(), name="watch-make")
        try:
            await serving
        finally:
            watch.cancel()


async def _pass_on_interrupt() -> None:
    await make_parent.interrupted()
    os.kill(os.getpid(), signal.SIGINT)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
