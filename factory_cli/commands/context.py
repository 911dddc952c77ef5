"""`hyperfactory context …`."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.commands.arguments import CrewRef
from factory_cli.session import with_client

app = typer.Typer(no_args_is_help=True)
Key = Annotated[str, typer.Argument(help="The key, as plan/step-1.")]


@app.command()
def get(context: typer.Context, crew: CrewRef, key: Key) -> None:
    """Print the value of a key."""
    from factory_cli import shared_context

    with_client(context, lambda client, out: shared_context.get(client, out, crew, key))


@app.command()
def put(
    context: typer.Context,
    crew: CrewRef,
    key: Key,
    value: Annotated[str, typer.Argument(help="Any JSON value; what is no JSON is taken as text.")] = "",
    if_version: Annotated[
        int | None, typer.Option(min=0, help="Only if this is its version now; 0: only if it is not set.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the key.")] = False,
) -> None:
    """Set a key, and print its new version."""
    from factory_cli import shared_context

    chosen = None if remove else value
    with_client(context, lambda client, out: shared_context.put(client, out, crew, key, chosen, if_version))


@app.command("list")
def list_(
    context: typer.Context,
    crew: CrewRef,
    prefix: Annotated[str, typer.Option(help="Only keys that begin so.")] = "",
) -> None:
    """List keys with their values."""
    from factory_cli import shared_context

    with_client(context, lambda client, out: shared_context.list_(client, out, crew, prefix))
