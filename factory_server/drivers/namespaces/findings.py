"""Turn what a probe found into the properties that the factory reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from factory_server.core.sandbox import Enforcement, Property, Tier
from factory_server.drivers.namespaces import probe

_BY_RLIMIT = "per process by rlimit only: "


def properties(
    tier: Tier,
    report: Mapping[str, Sequence[str]],
    missing: Mapping[str, str],
    groups: Sequence[Sequence[Any]],
) -> tuple[Property, ...]:
    """All properties; `missing` names the limits that no cgroup holds, with the reason."""
    found = [Property(name, Enforcement(how), why) for name, (how, why) in report.items()]
    found.append(_limit("memory_limit", missing.get("memory"), fallback=Enforcement.PARTIAL))
    found.append(_limit("cpu_limit", missing.get("cpu"), fallback=Enforcement.ABSENT))
    can_freeze = any(version == 2 or "freezer" in controllers for version, controllers, _ in groups)
    found.append(
        Property("freeze", Enforcement.ENFORCED)
        if can_freeze
        else Property("freeze", Enforcement.PARTIAL, "by SIGSTOP, process by process")
    )
    found.append(
        Property("sealed_socket_directory", Enforcement.ENFORCED)
        if tier is Tier.FULL
        else Property(
            "sealed_socket_directory",
            Enforcement.PARTIAL,
            "the agent is the directory's owner: only the file size limit bounds what it puts there",
        )
    )
    return tuple(found)


def _limit(name: str, why: str | None, *, fallback: Enforcement) -> Property:
    if not why:
        return Property(name, Enforcement.ENFORCED)
    return Property(name, fallback, (_BY_RLIMIT if fallback is Enforcement.PARTIAL else "") + why)


def no_tier(reasons: Sequence[str]) -> str:
    """Why this host cannot hold sandboxes at all."""
    version = probe.landlock_version()
    landlock = (
        f"Landlock (version {version}) alone would leave crews able to reach each other's sockets"
        if version
        else "the kernel has no Landlock either"
    )
    return f"this host gives no sandboxes: {'; '.join(reasons)}; {landlock}"
