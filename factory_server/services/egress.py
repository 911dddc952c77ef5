"""Keep one crew's way out as its manifest wishes: open while the crew stays, closed when it is gone."""

from __future__ import annotations

import logging

from factory_server.core.errors import FactoryError
from factory_server.core.model import CrewRow
from factory_server.services.parts import Parts
from factory_server.services.wiring import Wiring

log = logging.getLogger("factory.egress")


class WayOut:
    """Level-triggered: say `see_to` in each pass, and `close` when nobody is left."""

    def __init__(self, parts: Parts, wiring: Wiring) -> None:
        self._parts = parts
        self._wiring = wiring
        self._open = ""

    async def see_to(self, crew: CrewRow) -> None:
        """Open where it is wished; who leaves may still end its work with it. Trouble is for the next pass:
        members are led to the socket as soon as it is there."""
        wished = crew.manifest.network.allow_egress
        self._wiring.leads_out = wished
        try:
            if wished and not crew.wish_gone:
                self._wiring.lead_out(await self._parts.egress.open(crew.id, crew.manifest.network))
                self._open = crew.id
            elif not wished:
                await self.close()
        except FactoryError as error:
            self._parts.measures.trouble.labels("egress").inc()
            log.warning("cannot open a way out", extra={"crew": crew.id, "error": str(error)})

    async def close(self) -> None:
        """Close what this keeper has opened; other processes' sockets are left alone."""
        if self._open:
            await self._parts.egress.close(self._open)
            self._wiring.lead_out("")
            self._open = ""
