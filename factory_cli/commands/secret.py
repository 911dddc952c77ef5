"""`hyperfactory secret …`: what profiles refer to by name. Values are read from standard input, never printed."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.session import session_of

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name, as profiles say it.")]


@app.command("set")
def set_(context: typer.Context, name: Name) -> None:
    """Make or replace a secret; its value comes on standard input."""
    from factory_cli import secret_values

    session = session_of(context)
    secret_values.write(session.stack_home(), session.out, name)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the names of all secrets."""
    from factory_cli import secret_values

    session = session_of(context)
    secret_values.show(session.stack_home(), session.out)


@app.command()
def delete(context: typer.Context, name: Name) -> None:
    """Forget a secret; agents that run keep what they were given."""
    from factory_cli import secret_values

    session = session_of(context)
    secret_values.remove(session.stack_home(), session.out, name)
