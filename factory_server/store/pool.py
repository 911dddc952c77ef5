"""Run transactions on a bounded pool of connections, each with a deadline that is a deadline.

A psycopg call that is cancelled first tries to end its statement at the server; on a black-holed connection
that takes 10 s. So every transaction runs in a task of the database's own, and whoever waits for it stops
waiting at the deadline, whatever the task still has to tidy up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from factory_server.core.errors import Unavailable
from factory_server.store import errors
from factory_server.store.named import QUERIES

log = logging.getLogger("factory.store")

T = TypeVar("T")

CONNECTIONS_MIN = 2
CONNECTIONS_MAX = 12
WAITING_MAX = 512
"""Callers that may queue for a connection; the next one is refused at once."""
CONNECTION_WAIT_S = 2.0
CONNECT_WITHIN_S = 2
CALL_MAX_S = 6.0
"""A little more than a statement may take, so that the server's own word comes first."""
RECONNECT_FOR_S = 1.0
"""Then the pool gives up and connects on demand: its backoff would sleep through a recovery."""
CLOSE_WITHIN_S = 5.0
TCP_USER_TIMEOUT_MS = 4000

SESSION = {
    "default_transaction_isolation": "read\\ committed",
    "statement_timeout": "5s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
    "client_connection_check_interval": "2s",
    "synchronous_commit": "on",
    "plan_cache_mode": "force_generic_plan",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "jit": "off",
    "timezone": "UTC",
}
"""Settings of each session. Plans are generic, as planning our statements costs more than running them, and
they always go by index: a generic plan made while the tables were small must still be right when they are
large, and every statement here is about few rows of many."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What a commit changed: crews that got events with their last sequence, and whether agents changed, or
    what they said of their tools, or nothing but the log."""

    crews: Mapping[str, int]
    agents: bool
    tools: bool = False
    log_only: bool = False


@dataclass(eq=False)
class Transaction:
    """One transaction, in pipeline mode: statements that are sent together travel together."""

    connection: AsyncConnection[DictRow]
    crews: dict[str, int] = field(default_factory=dict)
    """Crews that get events by this transaction, with their last sequence."""
    agents: bool = False
    """Whether agents change by it."""
    tools: bool = False
    """Whether what agents said of their tools changes by it."""
    log_only: bool = False
    """Whether it only adds events for who watches: nobody has to act on it."""
    committing: bool = False
    """From here on a lost connection leaves the effect unknown."""

    async def send(self, name: str, /, **params: object) -> AsyncCursor[DictRow]:
        """Send a statement without waiting for its answer."""
        return await self.connection.execute(QUERIES[name], params, binary=True)

    async def rows(self, name: str, /, **params: object) -> list[DictRow]:
        """Run a statement; its rows."""
        return await (await self.send(name, **params)).fetchall()

    async def row(self, name: str, /, **params: object) -> DictRow | None:
        """Run a statement; its first row."""
        return await (await self.send(name, **params)).fetchone()

    async def one(self, name: str, /, **params: object) -> DictRow:
        """Run a statement that always has a row."""
        found = await self.row(name, **params)
        if found is None:
            raise LookupError(f"query {name} gave no row")
        return found


class Database:
    """A pool, and transactions on it."""

    def __init__(self, url: str, call_max_s: float = CALL_MAX_S) -> None:
        self.call_max_s = call_max_s
        self._pool = AsyncConnectionPool(
            url,
            min_size=CONNECTIONS_MIN,
            max_size=CONNECTIONS_MAX,
            max_waiting=WAITING_MAX,
            timeout=CONNECTION_WAIT_S,
            reconnect_timeout=RECONNECT_FOR_S,
            open=False,
            name="store",
            connection_class=AsyncConnection[DictRow],
            kwargs=connection_options(),
        )
        self._calls: set[asyncio.Task[Any]] = set()
        self.on_commit: Callable[[Changed], None] | None = None

    async def open(self) -> None:
        """Begin to connect; the first call waits for a connection."""
        await self._pool.open()

    async def close(self) -> None:
        """End what still runs, then all connections."""
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=CLOSE_WITHIN_S)
        await self._pool.close(CLOSE_WITHIN_S)

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run a transaction: commit when the body returns, roll back when it raises."""
        return await self.within(self.call_max_s, self._tried(self._write, body))

    async def read(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run reads without a transaction around them: each statement sees its own moment."""
        return await self.within(self.call_max_s, self._tried(self._read, body))

    async def snapshot(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run reads that all see one moment."""
        return await self.within(self.call_max_s, self._tried(self._read_snapshot, body))

    def own(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a call as a task of this object's: `close` ends what is left and waits for it."""
        task = asyncio.get_running_loop().create_task(call, name="store call")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def within(self, limit_s: float, call: Coroutine[Any, Any, T]) -> T:
        """Wait for a call, but no longer than the limit, even if its own ending takes longer."""
        task = self.own(call)
        try:
            done, _ = await asyncio.wait((task,), timeout=limit_s)
        except asyncio.CancelledError:
            _abandon(task)
            raise
        if not done:
            _abandon(task)
            raise Unavailable(f"the database did not answer within {limit_s:g} s")
        return task.result()

    async def _tried(
        self,
        attempt: Callable[[Callable[[Transaction], Awaitable[T]]], Awaitable[T]],
        body: Callable[[Transaction], Awaitable[T]],
    ) -> T:
        try:
            try:
                return await attempt(body)
            except _LostBeforeCommitError as lost:
                # The other connections are probably no better: sort them out at once, not one call each.
                await (self._pool.drain() if errors.is_outdated_plan(lost.error) else self._pool.check())
                return await attempt(body)
        except _LostBeforeCommitError as lost:
            raise errors.translate(lost.error) from lost.error
        except psycopg.Error as error:
            translated = errors.translate(error)
            if translated is error:
                raise
            raise translated from error

    async def _write(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        # BEGIN and COMMIT are sent by hand: psycopg's own would wait for each of them by itself.
        async with self._transaction() as transaction, transaction.connection.pipeline():
            await transaction.send("begin")
            result = await body(transaction)
            transaction.committing = True
            await transaction.send("commit")
        self._tell(transaction)
        return result

    async def _read(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        async with self._transaction() as transaction:
            return await body(transaction)

    async def _read_snapshot(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        async with self._transaction() as transaction, transaction.connection.pipeline():
            await transaction.send("begin_snapshot")
            result = await body(transaction)
            await transaction.send("commit")
        return result

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Transaction]:
        async with self._pool.connection() as connection:
            transaction = Transaction(connection)
            try:
                yield transaction
            except psycopg.Error as error:
                useless = errors.is_lost_connection(error) or errors.is_outdated_plan(error)
                if useless and not transaction.committing:
                    raise _LostBeforeCommitError(error) from error
                raise

    def _tell(self, transaction: Transaction) -> None:
        if self.on_commit is not None and (transaction.crews or transaction.agents or transaction.tools):
            crews = MappingProxyType(transaction.crews)
            self.on_commit(Changed(crews, transaction.agents, transaction.tools, transaction.log_only))


class _LostBeforeCommitError(Exception):
    """The connection became useless while nothing could have been committed: the body may run again."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.error = error


class Part:
    """What each part of the store stands on."""

    _db: Database


def connection_options() -> dict[str, Any]:
    """How each connection is made."""
    return {
        "autocommit": True,
        "row_factory": dict_row,
        "prepare_threshold": 0,
        "connect_timeout": CONNECT_WITHIN_S,
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "application_name": "hyperfactory",
        "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items()),
    }


def _abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    task.add_done_callback(_note_late)


def _note_late(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("an abandoned database call ended", extra={"error": str(error)})


def columns(rows: Sequence[DictRow], name: str) -> list[Any]:
    """One column of some rows."""
    return [row[name] for row in rows]
