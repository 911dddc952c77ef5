"""The root command: global options, and where each group of commands hangs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory_cli import session
from factory_cli.commands import (
    agent,
    call,
    context,
    crew,
    inspect,
    pool,
    profile,
    proxy,
    secret,
    skill,
    stack,
    task,
    tool,
)

app = typer.Typer(
    name="hyperfactory",
    help="Turn a JSON manifest into a running crew of sandboxed agents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(help="Where the stack keeps everything. Default: $HYPERFACTORY_HOME or ./run."),
    ] = None,
    client: Annotated[
        Path | None, typer.Option(help="How to connect. Default: client.json in the home.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document (a stream: JSON lines) and nothing else.")
    ] = False,
) -> None:
    """Turn a JSON manifest into a running crew of sandboxed agents."""
    context.obj = session.begin(home, client, as_json=as_json)


app.command("up")(stack.up)
app.command("demo")(stack.demo)
app.add_typer(crew.app, name="crew", help="Assemble, signal, watch and disband crews.")
app.add_typer(agent.app, name="agent", help="Look at agents, read their output, stop and spawn them.")
app.add_typer(task.app, name="task", help="Give tasks to members of a crew.")
app.add_typer(tool.app, name="tool", help="The tools of all agents: list, watch and call them.")
app.add_typer(skill.app, name="skill", help="Packs of instructions and scripts for agents: publish, mount.")
app.add_typer(context.app, name="context", help="Read and write a crew's shared context.")
app.command("pool")(pool.pool)
app.add_typer(profile.app, name="profile", help="Kinds of agents.")
app.add_typer(
    secret.app, name="secret", help="What profiles refer to by name: keys of models and of MCP servers."
)
app.command("call")(call.call)
app.command("proxy")(proxy.proxy)
app.command("connect")(inspect.connect)
app.command("doctor")(inspect.doctor)
app.command("check-leaks")(inspect.check_leaks)
