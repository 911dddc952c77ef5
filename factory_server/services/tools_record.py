"""Write what agents said of their tools to the store, gathered, and never faster than a log can bear."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence

from factory_server.core.errors import FactoryError, NotFound
from factory_server.core.tools import Offer
from factory_server.services.parts import Parts

log = logging.getLogger("factory.tools")

GATHER_S = 0.03
"""The members of a crew speak up at nearly the same time: one transaction for all of them."""
BURST_MAX = 10
WINDOW_S = 10.0
"""An agent's offers are written at most BURST_MAX times in so long; the newest one always in the end."""
AGAIN_S = 0.5
IDLE_S = 60.0


class OfferRecord:
    """The newest offer of each agent that is not written yet. `run` must be a task of the owner's."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._pending: dict[str, Offer] = {}
        self._spent: dict[str, tuple[float, int]] = {}
        self._wake = asyncio.Event()

    def put(self, offer: Offer) -> None:
        """To be written soon; replaces an older one of the same agent."""
        self._pending[offer.agent] = offer
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        pause_s = IDLE_S
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await asyncio.sleep(GATHER_S)
            pause_s = await self._write()

    async def _write(self) -> float:
        """Write what may be written now; how long until there is more to do."""
        now = time.monotonic()
        self._spent = {a: s for a, s in self._spent.items() if s[0] + WINDOW_S > now}
        crews: defaultdict[str, list[Offer]] = defaultdict(list)
        soonest_s = IDLE_S
        for offer in list(self._pending.values()):
            since, count = self._spent.get(offer.agent, (now, 0))
            if count >= BURST_MAX:
                soonest_s = min(soonest_s, since + WINDOW_S - now)
                continue
            self._spent[offer.agent] = (since, count + 1)
            crews[offer.crew].append(self._pending.pop(offer.agent))
        for crew, offers in crews.items():
            if not await self._written(crew, offers):
                soonest_s = AGAIN_S
        return max(soonest_s, GATHER_S)

    async def _written(self, crew: str, offers: Sequence[Offer]) -> bool:
        """Write one crew's; what cannot be written waits, unless something newer has come meanwhile."""
        try:
            await self._parts.store.record_offers(crew, offers)
        except NotFound:
            log.info("drops tools of a crew that is unknown", extra={"crew": crew})
        except FactoryError as error:
            self._parts.measures.trouble.labels("tools").inc()
            log.warning("cannot write tools", extra={"crew": crew, "error": str(error)})
            for offer in offers:
                self._pending.setdefault(offer.agent, offer)
            return False
        return True
