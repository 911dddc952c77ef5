"""`hyperfactory profile …`."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.session import with_client

app = typer.Typer(no_args_is_help=True)
File = Annotated[str, typer.Argument(metavar="FILE", help="The profile's JSON file; - for stdin.")]
ValidateOnly = Annotated[bool, typer.Option("--validate-only", help="Check it, write nothing.")]


@app.command("list")
def list_(context: typer.Context) -> None:
    """List profiles by name."""
    from factory_cli import profiles

    with_client(context, profiles.list_)


@app.command()
def get(context: typer.Context, name: str) -> None:
    """Show one profile."""
    from factory_cli import profiles

    with_client(context, lambda client, out: profiles.get(client, out, name))


@app.command()
def create(context: typer.Context, file: File, validate_only: ValidateOnly = False) -> None:
    """Make a profile from its JSON: {"name": …, "spec": {…}}."""
    from factory_cli import profiles

    with_client(context, lambda client, out: profiles.create(client, out, file, validate_only=validate_only))


@app.command()
def update(
    context: typer.Context,
    file: File,
    mask: Annotated[str, typer.Option(help="Which fields change, as spec.limits,description.")] = "",
    validate_only: ValidateOnly = False,
) -> None:
    """Change a profile; running agents keep the version they have."""
    from factory_cli import profiles

    with_client(
        context, lambda client, out: profiles.update(client, out, file, mask, validate_only=validate_only)
    )
