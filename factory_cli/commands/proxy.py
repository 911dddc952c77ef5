"""`hyperfactory proxy`: the factory's HTTP face for programs that know no client certificates."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.session import run, session_of

PORT = 8001


def proxy(
    context: typer.Context,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any.", min=0, max=65535)] = PORT,
) -> None:
    """Serve REST, MCP and chat as plain HTTP on 127.0.0.1, with your certificate and token added.

    Whoever may open a connection on this machine acts as you while it runs. Ctrl-C ends it.
    """
    from factory_cli import proxying

    run(proxying.run(session_of(context), port))
