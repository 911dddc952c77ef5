"""Start tasks in groups that may be ending."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from factory_server.core.errors import Unavailable

T = TypeVar("T")


def spawn(group: asyncio.TaskGroup, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """A task of the group's. Unavailable where the group is ending: it takes no task then, while those it has
    may run one step more before they learn that they are cancelled."""
    try:
        return group.create_task(work, name=name)
    except RuntimeError as error:
        work.close()
        raise Unavailable("this process is shutting down") from error
