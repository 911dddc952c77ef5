"""Ask the bus's server with a deadline, and tell its errors in native ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from factory_server.core.errors import FactoryError, Unavailable

COMMAND_MAX_S = 2.0


@asynccontextmanager
async def asked(deadline_s: float = COMMAND_MAX_S) -> AsyncIterator[None]:
    """A deadline, and native errors for the server's."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
        end_if_cancelled()
    except FactoryError:
        raise
    except TimeoutError as error:
        raise Unavailable(f"the bus did not answer within {deadline_s} s") from error
    except (NoPermissionError, ResponseError) as error:
        raise Unavailable(f"the bus refuses: {error}") from error
    except (RedisError, OSError) as error:
        end_if_cancelled()
        raise Unavailable(f"the bus does not answer: {error}") from error


def end_if_cancelled() -> None:
    """A cancellation that meets redis-py while it connects may be lost: `asyncio.wait_for`, which it uses
    there, gives its answer instead where that has just come (until Python 3.12)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
