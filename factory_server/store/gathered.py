"""Join reads by key: while one runs, the next ones gather, and are read together when it has ended.

Each answer was read after it was asked for, so whoever has just written finds what was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from factory_server.core.errors import Exhausted, Unavailable
from factory_server.store.pool import Database, Transaction

Row = TypeVar("Row")

GATHERED_MAX = 512
"""Keys that may wait for the next read; one more is refused at once."""


class Gathered(Generic[Row]):
    """Reads of one kind; `read` gives the rows of these keys that exist."""

    def __init__(
        self, db: Database, read: Callable[[Transaction, Sequence[str]], Awaitable[Mapping[str, Row]]]
    ) -> None:
        self._db = db
        self._read = read
        self._reading = False
        self._next: dict[str, asyncio.Future[Row | None]] = {}

    async def get(self, key: str) -> Row | None:
        """The row as it is now; None where there is none."""
        if self._reading:
            return await self._gather(key)
        self._reading = True
        try:
            return (await self._rows([key])).get(key)
        finally:
            self._go_on()

    async def _gather(self, key: str) -> Row | None:
        done = self._next.get(key)
        if done is None:
            if len(self._next) >= GATHERED_MAX:
                raise Exhausted("too many reads wait for the database", quota="reads")
            done = self._next[key] = asyncio.get_running_loop().create_future()
        # Others wait for the same: whoever leaves must not take it from them.
        await asyncio.wait((done,), timeout=self._db.call_max_s)
        if not done.done():
            raise Unavailable(f"the database did not answer within {self._db.call_max_s:g} s")
        return done.result()

    def _go_on(self) -> None:
        """Read what gathered meanwhile, if anything did."""
        if self._next:
            self._db.own(self._read_next())
        else:
            self._reading = False

    async def _read_next(self) -> None:
        batch, self._next = self._next, {}
        failed: Exception = Unavailable("the store is being closed")
        rows: Mapping[str, Row] | None = None
        try:
            rows = await self._rows(list(batch))
        except Exception as error:  # whatever it is, it is for those who asked
            failed = error
        finally:
            for key, done in batch.items():
                if rows is not None:
                    done.set_result(rows.get(key))
                else:
                    done.set_exception(failed)
                    done.exception()  # perhaps nobody waits any more
            self._go_on()

    async def _rows(self, keys: Sequence[str]) -> Mapping[str, Row]:
        return await self._db.read(lambda transaction: self._read(transaction, keys))
