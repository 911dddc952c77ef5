"""`hyperfactory crew …`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from factory_cli.commands.arguments import CrewRef, Filter, GraceS
from factory_cli.session import with_client

app = typer.Typer(no_args_is_help=True)


class Wait(StrEnum):
    """What `assemble` waits for."""

    READY = "ready"
    ACCEPTED = "accepted"


@app.command()
def assemble(
    context: typer.Context,
    manifest: Annotated[str, typer.Argument(metavar="FILE", help="The manifest's JSON file; - for stdin.")],
    wait: Annotated[
        Wait, typer.Option(help="Until all members are READY, or until the wish stands.")
    ] = Wait.READY,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check it, make nothing.")] = False,
    name: Annotated[str, typer.Option(help="Another name than the manifest's.")] = "",
) -> None:
    """Turn a manifest into a crew: all of it, or nothing."""
    from factory_cli import assembling
    from factory_cli import manifest as manifests

    wish = manifests.parse(manifests.read_text(manifest))
    if name:
        wish.name = name
    verb = assembling.Assemble(wish, until_ready=wait is Wait.READY, validate_only=validate_only)
    with_client(context, verb.run)


@app.command()
def update(
    context: typer.Context,
    crew: CrewRef,
    manifest: Annotated[
        str, typer.Argument(metavar="FILE", help="The new manifest's JSON file; - for stdin.")
    ],
    grace: GraceS = 0.0,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check it, change nothing.")] = False,
) -> None:
    """Scale a crew, add and remove members: what the manifest says now."""
    from factory_cli import crews
    from factory_cli import manifest as manifests

    wish = manifests.parse(manifests.read_text(manifest))
    with_client(
        context, lambda client, out: crews.update(client, out, crew, wish, grace, validate_only=validate_only)
    )


@app.command("list")
def list_(context: typer.Context, filter_: Filter = "") -> None:
    """List crews, oldest first."""
    from factory_cli import crews

    with_client(context, lambda client, out: crews.list_(client, out, filter_))


@app.command()
def get(context: typer.Context, crew: CrewRef) -> None:
    """Show a crew and its members."""
    from factory_cli import crews

    with_client(context, lambda client, out: crews.get(client, out, crew))


@app.command()
def broadcast(
    context: typer.Context,
    crew: CrewRef,
    signal: Annotated[str, typer.Argument(help="The signal, as MISSION_START or PAUSE.")],
    payload: Annotated[str, typer.Option(help="A JSON object that goes with it.")] = "",
    to: Annotated[list[str] | None, typer.Option(help="Only this agent or group; may be repeated.")] = None,
    ttl: Annotated[float, typer.Option(min=0.01, help="Seconds that agents have to answer.")] = 30.0,
) -> None:
    """Signal the crew's agents and print their receipts as they come."""
    from factory_cli import crews

    with_client(
        context, lambda client, out: crews.broadcast(client, out, crew, signal, payload, tuple(to or ()), ttl)
    )


@app.command()
def watch(
    context: typer.Context,
    crew: Annotated[str, typer.Argument(metavar="CREW", help="The crew's id or name; - for all crews.")],
    cursor: Annotated[str, typer.Option(help="Continue after here.")] = "",
    from_latest: Annotated[bool, typer.Option("--from-latest", help="Only what comes from now on.")] = False,
    types: Annotated[list[str] | None, typer.Option("--type", help="Only this type, as agent_state.")] = None,
    count: Annotated[int, typer.Option(min=0, help="Stop after so many events; 0: go on for ever.")] = 0,
    idle: Annotated[float, typer.Option(min=0, help="Stop when none came for so many seconds.")] = 0.0,
) -> None:
    """Print events as they happen; a broken stream is taken up where it ended."""
    from factory_cli import watching

    verb = watching.Watch(
        crew, cursor=cursor, from_latest=from_latest, types=tuple(types or ()), count=count, idle_s=idle
    )
    with_client(context, verb.run)


@app.command()
def disband(context: typer.Context, crew: CrewRef, grace: GraceS = 0.0) -> None:
    """Take a crew away: instances, network, credentials, routes."""
    from factory_cli import crews

    with_client(context, lambda client, out: crews.disband(client, out, crew, grace))
