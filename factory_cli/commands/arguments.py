"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

CrewRef = Annotated[str, typer.Argument(metavar="CREW", help="The crew's id, or the name of a live crew.")]
AgentRef = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's id, or CREW/NAME.")]
Filter = Annotated[
    str, typer.Option("--filter", help="Terms joined by ' AND ', as 'state=READY AND label.team=red'.")
]
GraceS = Annotated[float, typer.Option("--grace", min=0, help="Seconds that tasks may go on.")]
