"""Which driver a factory process uses, and how every sandbox of a home is ended, whoever made it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

from factory_server.config import Config
from factory_server.core.errors import FactoryError
from factory_server.core.ports import Store
from factory_server.core.sandbox import Driver
from factory_server.drivers import AUTO, open_driver, used_kinds

log = logging.getLogger("factory")

TERMINATE_TRIES: Final = 5
TERMINATE_AGAIN_S: Final = 1.0


def driver_of(settings: Config) -> Driver:
    """The one that is asked for."""
    return open_driver(
        settings.driver,
        settings.home / "sandboxes",
        factory=settings.home.name,
        crew_networks=settings.crew_networks,
    )


async def kept_driver(settings: Config, store: Store) -> Driver:
    """The one that is asked for; but `auto` stays with the driver whose instances live: another one would see none
    of them, and take their agents for dead."""
    if settings.driver == AUTO:
        made_by = {row.driver for row in await store.list_instances() if row.driver}
        if len(made_by) == 1:
            return driver_of(replace(settings, driver=made_by.pop()))
    return driver_of(settings)


async def terminate(settings: Config) -> None:
    """End every sandbox of this home, whoever owns it."""
    kinds = (
        await asyncio.to_thread(used_kinds, settings.home) if settings.driver == AUTO else [settings.driver]
    )
    for kind in kinds:
        await _terminate(replace(settings, driver=kind))


async def _terminate(settings: Config) -> None:
    """A driver that does not answer is asked again: nobody comes after us."""
    for left in reversed(range(TERMINATE_TRIES)):
        driver = driver_of(settings)
        try:
            await _end_all(driver)
        except (FactoryError, ExceptionGroup) as error:
            if not left:
                raise
            log.warning("cannot end all yet", extra={"action": "terminate_again", "error": repr(error)})
            await driver.close()
            await asyncio.sleep(TERMINATE_AGAIN_S)
        else:
            return


async def _end_all(driver: Driver) -> None:
    await driver.start()
    for sandbox in await driver.list():
        await driver.destroy(sandbox.instance)
    end = getattr(driver, "terminate", None)
    await (end() if end is not None else driver.close())
