"""Keep everything in PostgreSQL: the adapter behind `core.ports.Store`."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from factory_server.store import errors
from factory_server.store.audit import Audit
from factory_server.store.broadcasts import Broadcasts
from factory_server.store.context import Context
from factory_server.store.crews import Crews, read_agents
from factory_server.store.events import Events
from factory_server.store.gathered import Gathered
from factory_server.store.hibernation import Hibernation
from factory_server.store.instances import Instances
from factory_server.store.leases import Leases
from factory_server.store.migrate import load, migrate
from factory_server.store.networks import Networks
from factory_server.store.pool import CALL_MAX_S, Changed, Database
from factory_server.store.pools import Pools
from factory_server.store.profiles import Profiles
from factory_server.store.requests import Requests
from factory_server.store.skills import Skills
from factory_server.store.steps import Steps
from factory_server.store.tasks import Tasks
from factory_server.store.tools import Tools
from factory_server.store.updates import Updates
from factory_server.store.vectors import Vectors

__all__ = ["Changed", "PostgresStore"]

OPEN_WITHIN_S = 180.0
"""Migrations of a big database, and waiting for another factory that runs them."""


class PostgresStore(
    Crews,
    Updates,
    Steps,
    Hibernation,
    Leases,
    Instances,
    Pools,
    Networks,
    Events,
    Broadcasts,
    Tasks,
    Tools,
    Vectors,
    Profiles,
    Skills,
    Context,
    Requests,
    Audit,
):
    """The store on PostgreSQL 14 or later."""

    def __init__(self, url: str, *, call_max_s: float = CALL_MAX_S) -> None:
        self._url = url
        self._db = Database(url, call_max_s)
        self._agent_reads = Gathered(self._db, read_agents)

    @property
    def on_commit(self) -> Callable[[Changed], None] | None:
        """Called after each commit that appended events or changed agents; must not block or raise."""
        return self._db.on_commit

    @on_commit.setter
    def on_commit(self, hook: Callable[[Changed], None] | None) -> None:
        self._db.on_commit = hook

    async def open(self) -> None:
        """Migrate the database and begin to serve."""
        try:
            await self._db.within(OPEN_WITHIN_S, migrate(self._url, load()))
        except psycopg.Error as error:
            if (translated := errors.translate(error)) is error:
                raise
            raise translated from error
        await self._db.open()

    async def close(self) -> None:
        """End what still runs and all connections."""
        await self._db.close()
