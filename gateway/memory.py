"""Remember the routes on disk, so that a gateway that starts while the factory is gone still knows its agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

import structlog

from gateway.files import write
from gateway.registry import Registry, Route

SAVE_EVERY_S: Final = 1.0

log = structlog.get_logger()


def load(file: Path) -> Sequence[Route]:
    """The routes that were saved last; none where there is no file, or not one of ours."""
    try:
        return [Route(**found) for found in json.loads(file.read_bytes())]
    except (FileNotFoundError, ValueError, TypeError):
        return ()


async def keep(registry: Registry, file: Path) -> None:
    """Save the routes after they changed, at most once in a while, until cancelled."""
    changed = asyncio.Event()
    registry.observers.append(lambda _route, _gone: changed.set())
    while True:
        await changed.wait()
        changed.clear()
        try:
            await asyncio.to_thread(_save, file, list(registry.agents()))
        except OSError as error:
            log.warning("cannot save the routes", action="routes.save", error=str(error))
        await asyncio.sleep(SAVE_EVERY_S)


def _save(file: Path, routes: Sequence[Route]) -> None:
    names = [field.name for field in fields(Route)]  # asdict copies deeply, which costs ten times as much
    write(file, json.dumps([{name: getattr(route, name) for name in names} for route in routes]).encode())
