"""`hyperfactory up` and `hyperfactory demo`: the embedded stack."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from embedded.programs import DRIVER_VARIABLE
from factory_cli.session import run, session_of


class Kind(StrEnum):
    """What makes sandboxes."""

    AUTO = "auto"
    NAMESPACES = "namespaces"
    DOCKER = "docker"


Driver = Annotated[Kind, typer.Option(envvar=DRIVER_VARIABLE, help="What makes the agents' sandboxes.")]


def up(
    context: typer.Context,
    leave_sandboxes: Annotated[
        bool, typer.Option("--leave-sandboxes", help="On exit stop the programs, not the agents.")
    ] = False,
    driver: Driver = Kind.AUTO,
) -> None:
    """Serve the whole stack in the foreground until SIGINT."""
    from factory_cli import serving

    session = session_of(context)
    run(serving.up(session.home, session.out, destroy=not leave_sandboxes, driver=driver))


def demo(context: typer.Context, driver: Driver = Kind.AUTO) -> None:
    """Assemble a crew, give it a mission, kill a member, watch it heal, disband, count leaks."""
    from factory_cli.demo import main as demonstrate

    session = session_of(context)
    home = session.home if session.home_chosen else session.home / "demo"
    raise typer.Exit(demonstrate(home, session.out, driver))
