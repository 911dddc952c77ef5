"""`hyperfactory skill …`."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.commands.arguments import AgentRef
from factory_cli.session import with_client

app = typer.Typer(no_args_is_help=True)
Skill = Annotated[str, typer.Argument(metavar="SKILL", help="name@sha256:…, or a name for its newest.")]


@app.command()
def publish(
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="The pack's directory, or a .tar, .tar.gz.")],
    digest: Annotated[str, typer.Option(help="sha256:… that the pack must have.")] = "",
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check it, keep nothing.")] = False,
) -> None:
    """Store a skill pack, signed, and print the pin by which profiles and members name it."""
    from factory_cli import skills

    with_client(
        context, lambda client, out: skills.publish(client, out, path, digest, validate_only=validate_only)
    )


@app.command("list")
def list_(context: typer.Context) -> None:
    """List skill packs by name, newest first."""
    from factory_cli import skills

    with_client(context, skills.list_)


@app.command()
def get(context: typer.Context, skill: Skill) -> None:
    """Show one skill pack with its files and tools."""
    from factory_cli import skills

    with_client(context, lambda client, out: skills.get(client, out, skill))


@app.command()
def mount(context: typer.Context, agent: AgentRef, skill: Skill) -> None:
    """Mount a skill pack into a running agent, at /skills/NAME; its successors have it, too."""
    from factory_cli import skills

    with_client(context, lambda client, out: skills.mount(client, out, agent, skill))


@app.command()
def unmount(
    context: typer.Context,
    agent: AgentRef,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pack's name.")],
) -> None:
    """Take a skill pack away from a running agent; calls of its tools end first."""
    from factory_cli import skills

    with_client(context, lambda client, out: skills.unmount(client, out, agent, name))
