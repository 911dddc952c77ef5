"""`hyperfactory connect`, `doctor` and `check-leaks`: looking at what is there."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from factory_cli.session import session_of


def connect(context: typer.Context) -> None:
    """Print addresses, credentials and ready-made lines for other clients."""
    from factory_cli import connecting

    connecting.show(session_of(context))


def doctor(context: typer.Context) -> None:
    """Check what the stack needs, and say how to mend what is missing."""
    from factory_cli import doctor as checks

    session = session_of(context)
    raise typer.Exit(asyncio.run(checks.run(session.home, session.client_file, session.out)))


def check_leaks(
    context: typer.Context,
    within: Annotated[float, typer.Option(min=0, help="Seconds that leftovers have to go away.")] = 5.0,
) -> None:
    """Count what is left of disbanded crews; zeros are expected."""
    from factory_cli import leaks

    session = session_of(context)
    raise typer.Exit(asyncio.run(leaks.run(session.stack_home(), session.out, within_s=within)))
