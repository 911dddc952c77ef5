"""`hyperfactory pool`."""

from __future__ import annotations

from typing import Annotated

import typer

from factory_cli.session import with_client


def pool(
    context: typer.Context,
    target: Annotated[
        int | None, typer.Option(min=0, max=200, help="Set how many warm instances shall wait.")
    ] = None,
    base: Annotated[str, typer.Option(help="The base whose pool to set.")] = "",
) -> None:
    """Show the warm pool, or set its size."""
    from factory_cli import pools

    with_client(context, lambda client, out: pools.show(client, out, target, base))
