"""Keep the roster true: by the engine's events, and by looking at everything after each gap."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Sequence
from typing import Final

from factory_server.core.errors import FactoryError
from factory_server.core.sandbox import Exit
from factory_server.drivers.docker import containers, directories, hardening
from factory_server.drivers.docker.containers import Found
from factory_server.drivers.docker.exitinfo import from_code
from factory_server.drivers.docker.host import Host
from factory_server.drivers.docker.watch import Event

log = logging.getLogger("factory.docker")

STRAY_AGE_S: Final = 60.0
"""So old is what nobody makes any more: the half-made rest of a process that was killed beside us."""


class Keeper:
    """Ends nobody without an answer of the engine or of the kernel."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._adopting = asyncio.Lock()  # several look at once: at start, after a gap, for news

    async def on_event(self, event: Event) -> None:
        """A container ended."""
        attributes = event["Actor"]["Attributes"]
        container, instance = event["Actor"]["ID"], attributes.get(hardening.LABEL_INSTANCE, "")
        living, birth = self._host.roster.of(container), self._host.births.get(instance)
        if living is None and birth is None:
            return
        how = from_code(instance, int(attributes.get("exitCode", 0)))
        if how.signal:
            how = Exit(instance, signal=how.signal, oom=await self._was_oom(container))
        if living is not None:
            self._host.roster.end(living, how)
        if birth is not None and birth.container in ("", container):
            birth.fail(how)

    async def _was_oom(self, container: str) -> bool:
        try:
            state = await self._host.engine.read(
                lambda c: containers.state(c, container), what="ask how a sandbox ended"
            )
        except FactoryError as error:
            log.info("an end without its reason", extra={"action": "docker.end", "error": str(error)})
            return False
        return bool(state.get("OOMKilled"))

    async def found(self) -> Sequence[Found]:
        """Every container of this factory."""
        factory = self._host.factory
        return await self._host.engine.read(lambda c: containers.listed(c, factory), what="list sandboxes")

    async def reconcile(self) -> Sequence[Found]:
        """Make the roster agree with the engine; the answer is what the engine has."""
        before = list(self._host.roster)
        found = await self.found()
        live = {one.id for one in found if one.state in containers.LIVE}
        for living in before:
            if living.sandbox.container_id not in live:
                await self._bury(living.sandbox.container_id, living.sandbox.instance)
        for one in found:
            if one.id in live and not self._is_known(one.instance):
                async with self._adopting:
                    await self._adopt(one)
        return found

    def _is_known(self, instance: str) -> bool:
        return instance in self._host.roster or instance in self._host.births

    async def _bury(self, container: str, instance: str) -> None:
        state = await self._host.engine.read(
            lambda c: containers.state(c, container), what="ask how a sandbox ended"
        )
        how = from_code(instance, int(state.get("ExitCode", 0)))
        if how.signal:
            how = Exit(instance, signal=how.signal, oom=bool(state.get("OOMKilled")))
        living = self._host.roster.of(container)
        if living is not None and state.get("Status") not in containers.LIVE:
            self._host.roster.end(living, how)

    async def _adopt(self, one: Found) -> None:
        """Take a container of an earlier life over, if it serves and nobody was quicker."""
        host = self._host
        if self._is_known(one.instance):
            return
        state = await host.engine.read(lambda c: containers.state(c, one.id), what="adopt a sandbox")
        ready = bool(state) and await host.in_thread(directories.adopt_control, host.files, one.instance)
        if ready and not self._is_known(one.instance):
            host.users[one.instance] = one.user
            await host.enrol(one.instance, one.id, int(state["Pid"]), one.labels)

    def strays(self, found: Sequence[Found], *, age_s: float = STRAY_AGE_S) -> list[str]:
        """Half-made instances that nobody makes any more."""
        oldest = datetime.datetime.now(datetime.UTC).timestamp() - age_s
        return [
            one.instance
            for one in found
            if one.state != "exited"  # whoever saw it end will destroy it, and may want its output until then
            and one.created <= oldest
            and not self._is_known(one.instance)
            and one.instance not in self._host.flights
        ]
