"""An agent as the watchdog sees it: a real health service on a unix socket with mTLS, in its own process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc.aio

from wire.channels import SERVER_OPTIONS, server_credentials
from wire.health import HealthServicer, add_health
from wire.identity import IdentityFile


class SlowHealth(HealthServicer):
    """Answers after `delay_s`."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self._delay_s = delay_s

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        await asyncio.sleep(self._delay_s)
        return await super().Check(request, context)


async def serve(socket: str, identity: Path, delay_s: float, serving: bool) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    health = SlowHealth(delay_s)
    health.set("", serving)
    add_health(health, server)
    server.add_secure_port(f"unix:{socket}", server_credentials(IdentityFile(identity).current))
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "serving"))
