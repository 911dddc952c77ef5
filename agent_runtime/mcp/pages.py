"""Lists in pages: the cursor says which key was the last."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from agent_runtime.mcp.limits import PAGE_MAX
from wire.mcp.errors import invalid_params
from wire.mcp.messages import Json

Item = TypeVar("Item")


def page(items: Sequence[Item], key: Callable[[Item], str], cursor: Any) -> tuple[Sequence[Item], Json]:
    """The items after the cursor, which are sorted by key, and the next cursor as part of the result."""
    if cursor is not None:
        after = _decoded(cursor)
        items = [item for item in items if key(item) > after]
    shown = items[:PAGE_MAX]
    if len(items) <= PAGE_MAX:
        return shown, {}
    return shown, {"nextCursor": base64.urlsafe_b64encode(key(shown[-1]).encode()).decode()}


def _decoded(cursor: Any) -> str:
    try:
        return base64.urlsafe_b64decode(cursor.encode()).decode()
    except (AttributeError, binascii.Error, ValueError):
        raise invalid_params("params.cursor is not ours") from None
