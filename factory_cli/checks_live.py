"""The doctor's checks of what lives: the sandbox driver and a running stack."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc

from factory_cli import local
from factory_cli.client import CALL_WITHIN_S, connect
from factory_cli.doctor import Finding, Health
from factory_cli.failures import CommandFailedError, explain
from factory_server.core.errors import FactoryError
from factory_server.core.networks import CREW_NETWORKS
from factory_server.core.sandbox import DriverInfo, Enforcement
from factory_server.drivers.namespaces.driver import NamespacesDriver
from hyperfactory.v1 import factory_service_pb2


async def sandboxes() -> Sequence[Finding]:
    """The sandbox driver, by its own probe: a sandbox that tries to get out."""
    try:
        info = await _probe()
    except FactoryError as error:
        mend = await asyncio.to_thread(_sandbox_mend)
        return [Finding("sandboxes", Health.MISSING, error.message, mend)]
    properties = [found for found in info.properties if found.name != CREW_NETWORKS]
    weak = [found for found in properties if found.enforcement is not Enforcement.ENFORCED]
    held, tried = len(properties) - len(weak), len(properties)
    findings = [
        Finding("sandboxes", Health.OK, f"{info.name}, tier {info.tier}: {held} of {tried} properties hold")
    ]
    for found in weak:
        detail = f"{found.enforcement}: {found.reason}"
        mend = _property_mend(found.name)
        findings.append(Finding(f"sandbox {found.name}", Health.DEGRADED, detail, mend, required=False))
    return findings


async def _probe() -> DriverInfo:
    with tempfile.TemporaryDirectory(prefix="hf-doctor-") as place:
        driver = NamespacesDriver(Path(place), factory=f"doctor-{os.getpid()}")
        await driver.start()
        try:
            return await driver.probe()
        finally:
            await driver.terminate()


async def stack(place: Path, client_file: Path) -> Sequence[Finding]:
    """A running stack: each part's own word, then a call as a client."""
    if not client_file.is_file():  # noqa: ASYNC240  one look at a local file
        return [Finding("stack", Health.OK, "not running; start it with 'hyperfactory up'", required=False)]
    chosen = local.ports(place)
    parts = ("factory", "watchdog", "gateway")
    found = [await _part(name, chosen[f"{name}_metrics"], place) for name in parts if chosen]
    return [*found, await _answers(client_file)]


async def _part(name: str, port: int, place: Path) -> Finding:
    mend = f"see {place}/logs/{name}.log; 'hyperfactory up' restarts what is down"
    try:
        answer = await local.get(port, "/readyz")
    except (OSError, TimeoutError) as error:
        return Finding(f"stack {name}", Health.MISSING, f"no answer on port {port}: {error}", mend)
    if answer.status != 200:
        return Finding(f"stack {name}", Health.MISSING, f"not ready: {answer.body[:200].decode()}", mend)
    return Finding(f"stack {name}", Health.OK, f"ready, metrics on port {port}")


async def _answers(client_file: Path) -> Finding:
    try:
        async with connect(client_file) as client:
            request = factory_service_pb2.GetFactoryInfoRequest()
            info = await client.factory.GetFactoryInfo(request, timeout=CALL_WITHIN_S)
    except (CommandFailedError, grpc.aio.AioRpcError) as error:
        failure = explain(error)
        mend = "restart the stack with 'hyperfactory up'"
        return Finding("stack client", Health.MISSING, failure.message if failure else str(error), mend)
    return Finding(
        "stack client", Health.OK, f"version {info.version}, driver {info.driver}, tier {info.tier}"
    )


def _sandbox_mend() -> str:
    for file, wanted, line in (
        ("/proc/sys/kernel/unprivileged_userns_clone", "1", "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "0",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        setting = Path(file)
        if setting.exists() and setting.read_text().strip() != wanted:
            return f"as root: {line}; or run as root"
    return "allow user namespaces (sysctl user.max_user_namespaces=15000), or run as root"


def _property_mend(name: str) -> str:
    if name.endswith("_limit"):
        return "run as root, or under a systemd user session that delegates cgroup v2 controllers"
    return "run as root for the full tier" if os.geteuid() else "a newer kernel may allow it"
