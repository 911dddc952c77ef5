"""Drivers make sandboxes; `open_driver` picks one by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from factory_server.core.sandbox import Driver

CREW_NETWORKS = "10.213.0.0/16"
"""Where crews' networks get their addresses, unless told otherwise."""
AUTO = "auto"
KINDS = (AUTO, "namespaces", "docker", "fake")
AUTO_PREFERS_DOCKER = False
"""Whether `auto` takes an engine that answers and has the agents' image, before namespaces.

Not yet: crews, hibernation, kills and the demo are as reliable on Docker, but nobody checks that the image is of
this release (a stale runtime would be met at the first call), and a cold start takes ten times as long. Whoever
wants containers says `--driver docker`.
"""


def open_driver(
    kind: str, state_dir: Path, *, factory: str, leash_s: float = 0.0, crew_networks: str = CREW_NETWORKS
) -> Driver:
    """The driver called `kind`, not yet started; `auto` is the best that this release has.

    Imports wait until here: the fork server imports this package and must stay light and single-threaded.
    """
    from factory_server.core.errors import Invalid

    if kind == AUTO:
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


def used_kinds(home: Path) -> list[str]:
    """The drivers that may have sandboxes of this home: namespaces always, Docker where its engine has some."""
    from factory_server.core.errors import Unavailable
    from factory_server.drivers.docker import survey

    try:
        boxed = bool(survey.containers_of(home.resolve()))
    except Unavailable:
        boxed = False
    return ["namespaces", "docker"] if boxed else ["namespaces"]


def _best() -> str:
    if AUTO_PREFERS_DOCKER:
        from factory_server.drivers.docker.engine import is_ready

        if is_ready():
            return "docker"
    return "namespaces"
