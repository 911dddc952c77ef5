"""Call a profile's code: coroutines in the loop, plain functions in a few threads, errors told apart from ours."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agent_runtime.limits import THREADS_MAX
from wire.errors import AgentCodeFailed, FactoryError

log = logging.getLogger(__name__)


class Caller:
    """Calls functions that are not ours; owns the threads of those that block."""

    def __init__(self, agent: str = "") -> None:
        self.agent = agent
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="profile")

    def close(self) -> None:
        """Do not wait: a function that blocks for ever must not keep the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        context = contextvars.copy_context()
        work = functools.partial(context.run, function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a coroutine function here, a plain one in a thread. Whatever it raises becomes a native error."""
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*arguments)
            return await self.in_thread(function, *arguments)
        except Exception as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> FactoryError:
        """Native errors pass; others are the profile's own and say so."""
        if isinstance(error, ExceptionGroup):
            error = _first(error)
        if isinstance(error, FactoryError):
            return error
        log.warning("the agent's code failed", exc_info=error)
        text = f"the agent's code raised {type(error).__name__}: {error}"
        return AgentCodeFailed(text[:1000], metadata={"agent": self.agent})


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The first error of a task group: siblings mostly fail because of it."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
