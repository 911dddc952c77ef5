"""Serve the embedded stack in the foreground."""

from __future__ import annotations

import asyncio
from pathlib import Path

from embedded.paths import UnsafeDirectoryError
from embedded.stack import AlreadyServedError, Stack
from embedded.supervisor import CannotStartError
from factory_cli.failures import CommandFailedError
from factory_cli.output import Output


async def up(home: Path, out: Output, *, destroy: bool, driver: str = "auto") -> None:
    """Start or adopt everything, then wait for SIGINT or SIGTERM and stop it."""
    stack = Stack(home, say=out.text, destroy=destroy, driver=driver)
    try:
        async with stack:
            if out.as_json:
                out.line({"endpoint": stack.endpoint, "client": str(stack.client_file)})
            await stack.run_until_stopped()
    except asyncio.CancelledError:
        if not stack.interrupted:
            raise
    except (AlreadyServedError, CannotStartError, UnsafeDirectoryError) as error:
        raise CommandFailedError(str(error)) from error
