"""Keep a line open to each instance that waits in the pool, so that a claim finds both ends awake."""

from __future__ import annotations

import logging
from collections.abc import Callable

from factory_server.core.errors import FactoryError
from factory_server.core.line import Line

log = logging.getLogger("factory.lines")

WARM_MAX = 512
GREET_S = 5.0


class Lines:
    """Lines by control target. The first call over a new line costs both processes several milliseconds (the
    instance touches its pages for the first time): the pool pays that, not the claim."""

    def __init__(self, open_line: Callable[[str], Line]) -> None:
        self._open_line = open_line
        self._warm: dict[str, Line] = {}

    async def warm(self, control: str) -> None:
        """Open a line and hear the instance answer. An instance that does not is the claim's to find out."""
        if control in self._warm or len(self._warm) >= WARM_MAX:
            return
        line = self._open_line(control)
        try:
            await line.greet(deadline_s=GREET_S)
        except FactoryError as error:
            log.info("cannot warm a line", extra={"control": control, "error": str(error)})
            await line.close()
            return
        self._warm[control] = line

    def take(self, control: str) -> Line:
        """The warm line to this instance, the caller's from now on; a new one where there is none."""
        return self._warm.pop(control, None) or self._open_line(control)

    async def keep(self, waiting: set[str]) -> None:
        """Close lines to instances that wait no more: others have claimed them, or they are gone."""
        for control in self._warm.keys() - waiting:
            await self._warm.pop(control).close()

    async def close(self) -> None:
        """Close every line."""
        await self.keep(set())
