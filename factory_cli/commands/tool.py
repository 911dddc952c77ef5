"""`hyperfactory tool …`."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.commands.arguments import CrewRef
from factory_cli.session import with_client

app = typer.Typer(no_args_is_help=True)
AnyCrew = Annotated[str, typer.Argument(metavar="[CREW]", help="The crew's id or name; default: all crews.")]


@app.command("list")
def list_(
    context: typer.Context,
    crew: AnyCrew = "-",
    agent: Annotated[
        str, typer.Option(help="Only of this agent (its id, CREW/NAME, or its name in CREW).")
    ] = "",
) -> None:
    """List the tools that your scope may use, by public name."""
    from factory_cli import tools

    with_client(context, lambda client, out: tools.list_(client, out, crew, agent))


@app.command()
def watch(
    context: typer.Context,
    crew: AnyCrew = "-",
    idle: Annotated[float, typer.Option(min=0, help="Stop after so many seconds without a change.")] = 0.0,
) -> None:
    """Print the tools, then each change."""
    from factory_cli import tools

    with_client(context, lambda client, out: tools.watch(client, out, crew, idle))


@app.command()
def call(
    context: typer.Context,
    crew: CrewRef,
    name: Annotated[
        str, typer.Argument(metavar="TOOL", help="The tool's public name, as coder-1__read_file.")
    ],
    arguments: Annotated[str, typer.Argument(metavar="[JSON]", help="Its arguments, a JSON object.")] = "{}",
    timeout: Annotated[float, typer.Option(min=0.01, max=3600, help="Seconds that it may take.")] = 60.0,
) -> None:
    """Call a tool; print its progress and its result."""
    from factory_cli import tools

    with_client(context, lambda client, out: tools.call(client, out, crew, name, arguments, timeout))
