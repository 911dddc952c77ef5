"""The command lines of our own programs, and how to see that they are ready."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from embedded.process import Command
from embedded.supervisor import Service

ANSWER_WITHIN_S = 2.0
READY_WITHIN_S = 60.0
STATUS_MAX_BYTES = 256
DRIVERS = ("auto", "namespaces", "docker")
DRIVER_VARIABLE = "HYPERFACTORY_DRIVER"


def driver_wanted() -> str:
    """What makes sandboxes, as the environment says; a wrong word is refused by the factory."""
    return os.environ.get(DRIVER_VARIABLE, DRIVERS[0])


def factory(
    home: Path, ports: Mapping[str, int], database_url: str, bus_url: str, driver: str = "auto"
) -> Service:
    """Describe the factory server; it also makes the PKI that the others need."""
    command = factory_command(home, ports, database_url, bus_url, driver=driver)
    return _service(command, ports["factory_metrics"])


def factory_command(
    home: Path,
    ports: Mapping[str, int],
    database_url: str,
    bus_url: str,
    *extra: str,
    driver: str = "auto",
    name: str = "factory",
) -> Command:
    """Write the factory's command line."""
    command = _command(
        home,
        name,
        "factory_server",
        *("--home", str(home), "--database-url", database_url),
        *("--listen", _local(ports["factory"]), "--http-listen", _local(ports["factory_http"])),
        *("--gateway", _local(ports["gateway"])),
        *("--metrics", _local(ports["factory_metrics"]), "--driver", driver, *extra),
    )
    # The bus's URL has a password, and a command line is everybody's to read.
    return replace(command, env={**os.environ, "HYPERFACTORY_BUS_URL": bus_url})


def terminate_command(
    home: Path, ports: Mapping[str, int], database_url: str, bus_url: str, driver: str = "auto"
) -> Command:
    """Write the one-shot command that ends every sandbox and zygote of this home."""
    return factory_command(
        home, ports, database_url, bus_url, "--terminate", driver=driver, name="factory-terminate"
    )


def watchdog(home: Path, ports: Mapping[str, int]) -> Service:
    """Describe the watchdog."""
    return _client(home, "watchdog", ports)


def gateway(home: Path, ports: Mapping[str, int]) -> Service:
    """Describe the gateway."""
    where = ("--listen", _local(ports["gateway"]), "--state", str(home / "gateway"))
    return _client(home, "gateway", ports, "--factory-http", _local(ports["factory_http"]), *where)


def _client(home: Path, name: str, ports: Mapping[str, int], *extra: str) -> Service:
    """Describe a program that knows the factory by its contract only; its module has the service's name."""
    port = ports[f"{name}_metrics"]
    options = ("--factory", _local(ports["factory"]), "--identity", str(home / "pki" / name), *extra)
    return _service(_command(home, name, name, *options, "--metrics", _local(port)), port)


def _command(home: Path, name: str, module: str, *options: str) -> Command:
    # -P: the working directory must not lend its folders' names to our imports.
    return Command(name, (sys.executable, "-P", "-m", module, *options), home)


def _service(command: Command, port: int) -> Service:
    return Service(command=command, ready=_answers(port), ready_within_s=READY_WITHIN_S, stop_within_s=15.0)


def _answers(port: int) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await _status(port, "/readyz") == b"200"
        except (OSError, TimeoutError):
            return False

    return ready


async def _status(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=STATUS_MAX_BYTES * 256)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        await writer.drain()
        words = (await reader.readline()).split()
        return words[1] if len(words) > 1 else b""
    finally:
        writer.close()


def _local(port: int) -> str:
    return f"127.0.0.1:{port}"
