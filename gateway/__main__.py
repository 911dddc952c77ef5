"""Run the gateway: `python -m gateway --factory HOST:PORT --identity DIR --listen HOST:PORT --state DIR …`."""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
from pathlib import Path
from typing import Final

import uvloop

from gateway.relay import PARK_S, Limits
from gateway.service import GRACE_S, HELLO_S, Options, serve
from wire.logs import configure

FILES_MAX: Final = 32_768
FILES_SPARE: Final = 256
FILES_PER_CONNECTION: Final = 2


def main() -> None:
    """Parse the command line and serve until SIGTERM or SIGINT."""
    configure("gateway")
    uvloop.run(_serve(_options()))


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="gateway", description="One port for the factory and every agent.")
    parser.add_argument("--factory", required=True, help="the factory's host:port")
    parser.add_argument("--factory-http", default="", help="host:port where the factory speaks HTTP/1.1")
    parser.add_argument("--identity", required=True, type=Path, help="directory of the gateway's identity")
    parser.add_argument("--listen", required=True, help="host:port for clients")
    parser.add_argument("--state", required=True, type=Path, help="directory for what survives a restart")
    parser.add_argument("--metrics", required=True, help="host:port of /metrics, /readyz and /routes")
    parser.add_argument("--park-s", type=float, default=PARK_S, help="how long a call waits for its agent")
    parser.add_argument("--grace-s", type=float, default=GRACE_S, help="how long calls may finish at the end")
    parser.add_argument(
        "--hello-s", type=float, default=HELLO_S, help="how long a client may say nothing at first"
    )
    return parser


def _options() -> Options:
    given = parser().parse_args()
    return Options(
        factory=given.factory,
        factory_http=given.factory_http,
        identity=given.identity,
        listen=given.listen,
        state=given.state.resolve(),
        metrics=given.metrics,
        grace_s=given.grace_s,
        hello_s=given.hello_s,
        limits=Limits(connections=_connections_max(), park_s=given.park_s),
    )


def _connections_max() -> int:
    """As many connections as there are file descriptors for, after asking for all that we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return (wanted - FILES_SPARE) // FILES_PER_CONNECTION


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    await serve(options, stop)


if __name__ == "__main__":
    main()
