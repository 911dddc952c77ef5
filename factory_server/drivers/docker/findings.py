"""The properties of a sandbox, from what a probe found inside and what the engine says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from factory_server.core.sandbox import Enforcement, Property

_LIMITS: Final = {
    "memory_limit": ("MemoryLimit", "this kernel has no memory cgroup"),
    "cpu_limit": ("CpuCfsQuota", "this kernel has no CPU quota"),
}


def remapped_base(info: Mapping[str, Any]) -> int:
    """The host user that is root inside, as the engine's data directory tells; 0 without user namespaces."""
    if not any("name=userns" in option for option in info.get("SecurityOptions") or ()):
        return 0
    base = str(info["DockerRootDir"]).rstrip("/").rpartition("/")[2].partition(".")[0]
    return int(base) if base.isdigit() else 0


def properties(
    info: Mapping[str, Any], report: Mapping[str, Sequence[str]], *, owns_files: bool
) -> tuple[Property, ...]:
    """All properties, honestly."""
    inside = {name: Property(name, Enforcement(how), why) for name, (how, why) in report.items()}
    inside["user_namespace"] = (
        Property("user_namespace", Enforcement.ENFORCED)
        if remapped_base(info)
        else Property("user_namespace", Enforcement.ABSENT, "the engine runs without userns-remap")
    )
    inside["distinct_host_user"] = Property(
        "distinct_host_user", Enforcement.PARTIAL, "each has its own unprivileged user, within one factory"
    )
    for name, (field, why) in _LIMITS.items():
        held = bool(info.get(field))
        inside[name] = Property(
            name, Enforcement.ENFORCED if held else Enforcement.ABSENT, "" if held else why
        )
    inside["freeze"] = Property("freeze", Enforcement.ENFORCED)
    inside["sealed_socket_directory"] = (
        Property("sealed_socket_directory", Enforcement.ENFORCED)
        if owns_files
        else Property("sealed_socket_directory", Enforcement.ABSENT, "the factory is not root")
    )
    return tuple(inside.values())
