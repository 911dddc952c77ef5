"""Page tokens: opaque, bound to the list and the filter they continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from factory_server.core.cursor import CursorCodec
from factory_server.core.model import Page

T = TypeVar("T")

PAGE_SIZE = 100


def page_of(codec: CursorCodec, scope: str, size: int, token: str) -> Page:
    """The page that a request asks for. Invalid for a token of another list or filter."""
    after = codec.decode(f"page|{scope}", token, "page_token") if token else ""
    return Page(size or PAGE_SIZE, after)


def split(
    codec: CursorCodec, scope: str, page: Page, found: Sequence[T], key: str
) -> tuple[Sequence[T], str]:
    """What belongs on the page, and the token of the next one ('' on the last). `key` names the sort field."""
    if len(found) <= page.size:
        return found, ""
    shown = found[: page.size]
    return shown, codec.encode(f"page|{scope}", str(getattr(shown[-1], key)))
