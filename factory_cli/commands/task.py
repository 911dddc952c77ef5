"""`hyperfactory task …`."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.commands.arguments import CrewRef
from factory_cli.session import with_client

app = typer.Typer(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Give tasks to members of a crew."""


@app.command()
def run(
    context: typer.Context,
    crew: CrewRef,
    agent: Annotated[str, typer.Option(help="The member with this id or name.")] = "",
    group: Annotated[str, typer.Option(help="Any READY member of this group.")] = "",
    any_: Annotated[bool, typer.Option("--any", help="Any READY member.")] = False,
    input_: Annotated[str, typer.Option("--input", help="The task's input, a JSON object.")] = "{}",
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds that it may take.")] = 300.0,
) -> None:
    """Run a task on a member; print its progress and its result."""
    from factory_cli import tasks

    target = tasks.Target(agent=agent, group=group, any=any_)
    with_client(context, lambda client, out: tasks.run(client, out, crew, target, input_, timeout))
