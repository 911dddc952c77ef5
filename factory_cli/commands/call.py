"""`hyperfactory call`: any method of the contract."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.session import run, session_of


def call(
    context: typer.Context,
    method: Annotated[
        str, typer.Argument(help="As CrewService/GetCrew; the service may be left out where it is clear.")
    ] = "",
    request: Annotated[str, typer.Argument(metavar="JSON", help="The request; - for stdin.")] = "{}",
    list_: Annotated[bool, typer.Option("--list", help="List all methods.")] = False,
    authority: Annotated[
        str, typer.Option(help="Call an agent, as coder-1.crew-<id>.svc, instead of the factory.")
    ] = "",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds; 0: as the method says.")] = 0.0,
) -> None:
    """Call any RPC with JSON; a stream prints one line of JSON per message."""
    from factory_cli import calling

    session = session_of(context)
    if list_ or not method:
        calling.list_methods(session.out)
        return
    run(calling.call(session, method, request, authority, timeout))
