"""Drivers make sandboxes; `open_driver` picks one by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factory_server.core.sandbox import Driver

CREW_NETWORKS = "10.213.0.0/16"
"""Where crews' networks get their addresses, unless told otherwise."""
KINDS = ("auto", "namespaces", "docker", "fake")
AUTO_PREFERS_DOCKER = False
"""Whether `auto` takes an engine that answers and has the agents' image, before namespaces."""


def open_driver(
    kind: str, state_dir: Path, *, factory: str, leash_s: float = 0.0, crew_networks: str = CREW_NETWORKS
) -> Driver:
    """The driver called `kind`, not yet started; `auto` is the best that this release has.

    Imports wait until here: the fork server imports this package and must stay light and single-threaded.
    """
    from factory_server.core.errors import Invalid

    if kind == "auto":
        kind = _best()
    bases = state_dir.parent / "bases"
    match kind:
        case "docker":
            from factory_server.drivers.docker.driver import DockerDriver

            return DockerDriver(state_dir, factory=factory, bases_dir=bases, addresses=crew_networks)
        case "namespaces":
            from factory_server.drivers.namespaces.driver import NamespacesDriver

            return NamespacesDriver(state_dir, factory=factory, leash_s=leash_s, bases_dir=bases)
        case "fake":
            from factory_server.drivers.fake import FakeDriver

            return FakeDriver(state_dir)
        case _:
            raise Invalid(f"no driver is called '{kind}'; there are {', '.join(KINDS)}")


def _best() -> str:
    if AUTO_PREFERS_DOCKER:
        from factory_server.drivers.docker.engine import is_ready

        if is_ready():
            return "docker"
    return "namespaces"
