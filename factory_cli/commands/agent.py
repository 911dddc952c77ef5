"""`hyperfactory agent …`."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.commands.arguments import AgentRef, Filter, GraceS
from factory_cli.session import with_client

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_(
    context: typer.Context,
    crew: Annotated[str, typer.Option(help="Only members of this crew (id or name).")] = "",
    filter_: Filter = "",
) -> None:
    """List agents, oldest first."""
    from factory_cli import agents

    with_client(context, lambda client, out: agents.list_(client, out, crew, filter_))


@app.command()
def get(
    context: typer.Context,
    agent: AgentRef,
    pid: Annotated[
        bool, typer.Option("--pid", help="Print only its process, as this host numbers it.")
    ] = False,
) -> None:
    """Show one agent."""
    from factory_cli import agents

    with_client(context, lambda client, out: agents.get(client, out, agent, pid=pid))


@app.command()
def logs(
    context: typer.Context,
    agent: AgentRef,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the instance ends.")] = False,
    tail: Annotated[int, typer.Option(min=0, max=524_288, help="Bytes of what is there; 0: 64 KiB.")] = 0,
) -> None:
    """Print an agent's output."""
    from factory_cli import agents

    with_client(context, lambda client, out: agents.logs(client, out, agent, follow=follow, tail_bytes=tail))


@app.command()
def stop(context: typer.Context, agent: AgentRef, grace: GraceS = 0.0) -> None:
    """End an agent for good."""
    from factory_cli import agents

    with_client(context, lambda client, out: agents.stop(client, out, agent, grace))


@app.command()
def hibernate(
    context: typer.Context,
    agent: AgentRef,
    light: Annotated[bool, typer.Option(help="Freeze it in place instead: its memory stays.")] = False,
) -> None:
    """Store an agent's state and end its instance, until it is needed."""
    from factory_cli import agents

    with_client(context, lambda client, out: agents.hibernate(client, out, agent, light=light))


@app.command()
def wake(context: typer.Context, agent: AgentRef) -> None:
    """Bring a hibernating agent back."""
    from factory_cli import agents

    with_client(context, lambda client, out: agents.wake(client, out, agent))


@app.command()
def spawn(
    context: typer.Context,
    profile: Annotated[str, typer.Argument(help="The profile's name.")],
    name: Annotated[str, typer.Option(help="Its name; default: the profile's with a suffix.")] = "",
    crew: Annotated[str, typer.Option(help="The crew to join; default: one of its own.")] = "",
) -> None:
    """Make one agent and wait until it is READY."""
    from factory_cli import agents

    with_client(context, lambda client, out: agents.spawn(client, out, profile, name, crew))
