"""What every command knows: where the home is, how to connect, how to print."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from factory_cli.output import Output

if TYPE_CHECKING:
    from factory_cli.client import Client

HOME_DEFAULT = "run"
HOME_VARIABLE = "HYPERFACTORY_HOME"


@dataclass(frozen=True, slots=True)
class Session:
    """The global options of one invocation."""

    home: Path
    client_file: Path
    out: Output
    home_chosen: bool = False
    """The home was named by option or environment; `demo` else takes one of its own."""
    client_decides: bool = False
    """`--client` came without `--home`: what is done to a home is done to the one that this file names."""

    def stack_home(self) -> Path:
        """Return the home of the stack that commands go to, for those that work on its files."""
        if not self.client_decides:
            return self.home
        from factory_cli.client import read_client_file
        from factory_cli.failures import UsageFailedError

        home = read_client_file(self.client_file).home
        if home is None:
            raise UsageFailedError(
                f"cannot tell whose files these are: '{self.client_file}' names no home; add --home"
            )
        return home


def begin(home: Path | None, client_file: Path | None, *, as_json: bool) -> Session:
    """Resolve the global options to what commands use."""
    named = home or (Path(os.environ[HOME_VARIABLE]) if os.environ.get(HOME_VARIABLE) else None)
    place = (named or Path(HOME_DEFAULT)).resolve()
    return Session(
        home=place,
        client_file=client_file or place / "client.json",
        out=Output(as_json=as_json),
        home_chosen=named is not None,
        client_decides=client_file is not None and home is None,
    )


def session_of(context: typer.Context) -> Session:
    """Return the session that the root command began."""
    found = context.find_root().obj
    if not isinstance(found, Session):
        raise TypeError("the root command has not begun a session")
    return found


def with_client(context: typer.Context, work: Callable[[Client, Output], Awaitable[None]]) -> None:
    """Connect as client.json says, do the work, disconnect."""
    session = session_of(context)
    asyncio.run(_connected(session, work))


async def _connected(session: Session, work: Callable[[Client, Output], Awaitable[None]]) -> None:
    from factory_cli.client import connect

    async with connect(session.client_file) as client:
        await work(client, session.out)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run work that connects by itself, or not at all."""
    asyncio.run(work)
