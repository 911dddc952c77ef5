"""What people ask an engine from outside a factory: is it there, is it fit, and what of a home is left in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker
import requests
from docker.errors import DockerException, ImageNotFound

from factory_server.core.errors import Unavailable
from factory_server.drivers.docker import bridges, containers
from factory_server.drivers.docker.engine import DEFAULT_IMAGE, SILENCE_MAX_S, Client, default_url
from factory_server.drivers.docker.findings import remapped_base
from factory_server.drivers.docker.host import factory_id

VERSION_MIN: Final = (20, 10)


@dataclass(frozen=True, slots=True)
class Facts:
    """An engine that answers."""

    url: str
    version: str
    image: str
    """The id of the agents' image; '' where it is missing."""
    image_bytes: int
    user_namespaces: bool

    @property
    def too_old(self) -> bool:
        """Whether the driver was never tried with such an engine."""
        major, minor, *_ = [*self.version.split("."), "0"]
        return (int(major), int(minor)) < VERSION_MIN if major.isdigit() and minor.isdigit() else False


@dataclass(frozen=True, slots=True)
class Container:
    """One of a home."""

    instance: str
    id: str
    state: str


def facts(image: str = DEFAULT_IMAGE) -> Facts:
    """What the engine of this environment is and has. Raises Unavailable. Blocking."""
    with _connected() as client:
        info: dict[str, Any] = client.info()
        try:
            found: dict[str, Any] = client.inspect_image(image)
        except ImageNotFound:
            found = {}
        version, remapped = str(info["ServerVersion"]), bool(remapped_base(info))
        return Facts(default_url(), version, found.get("Id", ""), int(found.get("Size", 0)), remapped)


def containers_of(home: Path) -> Sequence[Container]:
    """Every container of a home's factory, ended ones too. Raises Unavailable. Blocking."""
    with _connected() as client:
        found = containers.listed(client, factory_id(home.name, home / "sandboxes"))
    return [Container(one.instance, one.id[:12], one.state) for one in found]


def networks_of(home: Path) -> Sequence[str]:
    """Every crew network of a home's factory. Raises Unavailable. Blocking."""
    with _connected() as client:
        found = bridges.listed(client, factory_id(home.name, home / "sandboxes"))
    return [bridge.network for bridge in found]


@contextmanager
def _connected() -> Iterator[Client]:
    """A client for one look; whatever goes wrong is that nothing can be seen."""
    url = default_url()
    socket = Path(url.removeprefix("unix://"))
    if url.startswith("unix://") and not socket.is_socket():
        raise Unavailable(f"no engine listens on {socket}")
    client: Client = None
    try:
        client = docker.APIClient(base_url=url, version="auto", timeout=SILENCE_MAX_S)
        yield client
    except (DockerException, requests.RequestException, OSError) as error:
        raise Unavailable(f"the engine on {url} does not answer: {error}") from error
    finally:
        if client is not None:
            client.close()
