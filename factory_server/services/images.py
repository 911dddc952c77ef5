"""Know the image of each base: recorded with every version of a profile, and told where it is another by now.

An engine may hang, and reads must not hang with it: who reads is told what was seen last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from factory_server.core.errors import FactoryError
from factory_server.core.sandbox import Driver

log = logging.getLogger("factory.images")


@runtime_checkable
class HasImages(Protocol):
    """A driver that makes sandboxes from images."""

    async def image_digest(self, base: str) -> str:
        """`sha256:…` of the base's image as it is now; '' where it is missing. Unavailable."""


@runtime_checkable
class HasBases(Protocol):
    """A driver that makes sandboxes from trees of files."""

    async def has_base(self, base: str) -> bool:
        """Whether the base is there."""


class Images:
    """What was seen of the bases' images."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._seen: dict[str, str] = {}

    def seen(self, base: str) -> str:
        """The base's image when it was last looked at; '' where there is none, or nobody has looked."""
        return self._seen.get(base, "")

    async def look(self, base: str) -> str:
        """The base's image now; what was seen last where the driver does not answer."""
        if not isinstance(self._driver, HasImages):
            return ""
        try:
            self._seen[base] = await self._driver.image_digest(base)
        except FactoryError as error:
            log.info("cannot look at an image", extra={"base": base, "error": str(error)})
        return self.seen(base)

    async def has_base(self, base: str) -> bool:
        """Whether sandboxes can be made of it. Unavailable."""
        match self._driver:
            case HasImages():
                return bool(await self._driver.image_digest(base))
            case HasBases():
                return await self._driver.has_base(base)
            case _:
                return True

    async def look_at(self, bases: Iterable[str]) -> None:
        """Look at these."""
        for base in bases:
            await self.look(base)
