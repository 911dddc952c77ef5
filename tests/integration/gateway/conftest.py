"""The stage on which the gateway's tests play."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.gateway.parts import Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A registry that answers and a gateway that is ready; the path is short for the sake of sockets."""
    with tempfile.TemporaryDirectory(prefix="hfgw") as home:
        stage = Stage(Path(home))
        await stage.start_factory()
        try:
            await stage.gateway.start()
            await stage.gateway.ready()
            yield stage
        finally:
            await stage.close()
